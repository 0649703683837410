"""`sail segment train`: a dense head on a frozen backbone, and its scores."""

from evals.referring.data import SCENES as SCENES_REFERRING
from evals.referring.options import REFERRING
from evals.segmentation.layouts import SCENES
from evals.segmentation.options import TrainOptions, check_head, choose_features, open_data
from evals.segmentation.run_folders import TRAIN, check_owner
from sail_encoder.backbones.registry import announce
from sail_encoder.io.errors import UserError


def train(options: TrainOptions) -> int:
    """Trains a segmentation head on a frozen backbone, or a Pixel-SAIL, and scores it.

    With --head referring, a Pixel-SAIL is trained. The data set is looked through first. Killed or stopped, the same
    command goes on, and ends with the weights of a run that was never stopped. The defaults suit small data;
    configs/segmentation and configs/referring have published protocols.

    Returns:
        Exit status: 0 done, 130 or 143 stopped by a signal.

    Raises:
        UserError: If something that is asked for is not possible.
    """
    if options.head == REFERRING:
        from evals.referring.training import train_referring

        return train_referring(options)
    if options.data == SCENES_REFERRING:
        raise UserError(f"{options.data} has referring expressions and no classes; use --head {REFERRING}")
    check_owner(options.folder, TRAIN)
    source, spec = choose_features(options)
    # Scenes are drawn only when nothing else can be wrong.
    data = None if options.data in SCENES else open_data(options)
    announce(options.model)
    check_head(options, [spec.channels("none", source.class_token)] * len(source.layers))
    training_data, validation_data = data or open_data(options)
    from evals.segmentation.training import train_head

    status, table = train_head(options, source, spec, training_data, validation_data)
    if status:
        return status
    print(table)
    return 0
