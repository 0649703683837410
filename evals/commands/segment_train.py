"""`sail segment train`: a dense head on a frozen backbone, and its scores."""

from evals.segmentation.folders import TRAIN, check_owner, check_run, claim
from evals.segmentation.options import TrainOptions, check_head, choose_features, open_data
from evals.segmentation.sources import SCENES
from sail_encoder.backbones.registry import announce


def train(options: TrainOptions) -> int:
    """Trains a segmentation head on a frozen backbone, and scores it.

    The data set is looked through first. Killed or stopped, the same command goes on, and ends with the weights of a
    run that was never stopped. The defaults suit small data; configs/segmentation has published protocols.

    Returns:
        Exit status: 0 done, 130 or 143 stopped by a signal.

    Raises:
        UserError: If something that is asked for is not possible.
    """
    check_owner(options.folder, TRAIN)
    source, spec = choose_features(options)
    # Scenes are drawn only when nothing else can be wrong.
    data = None if options.data in SCENES else open_data(options)
    announce(options.model)
    check_head(options, [spec.embed_dim] * len(source.layers))
    training_data, validation_data = data or open_data(options)
    settings = options.decisive(training_data)
    if not options.overwrite:
        check_run(options.folder, settings)
    from evals.segmentation.batches import check_budget
    from evals.segmentation.training import Run, build_batches, build_segmenter

    if options.mode == "cached":
        check_budget(training_data.samples, spec, source, options.cache_gb)
    segmenter, trained = build_segmenter(options, source, training_data)
    settings = {**settings, "weights": trained.source.weights}
    claim(options.folder, settings, options.overwrite)
    run = Run(options, segmenter, trained, validation_data)
    status = run.learn(build_batches(options, segmenter, training_data), settings, len(training_data))
    if status:
        return status
    print(run.finish())
    return 0
