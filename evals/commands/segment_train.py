"""`sail segment train`: a dense head on a frozen backbone, and its scores."""

from typing import Any, Literal

from evals.segmentation import training
from evals.segmentation.folders import TRAIN, check_owner, check_run, claim
from evals.segmentation.options import CountedPixels, TrainRequest
from evals.segmentation.pairs import LayoutName
from heads.recipe import OptimizerName
from heads.schedules import ScheduleName
from sail_encoder.backbones.registry import announce


def train(
    data: str,
    out: str,
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    head: str = "linear",
    head_options: dict[str, Any] | None = None,
    layers: str = "-1",
    norm: bool = True,
    mode: Literal["online", "cached"] = "online",
    layout: LayoutName = "folder",
    class_map: str | None = None,
    reduce_zero_label: bool = False,
    ignore_label: int = 255,
    resize: str = "auto",
    max_tokens: int | None = None,
    crop: str | int = 112,
    jitter: tuple[float, float] | None = None,
    flip: bool = True,
    distort: bool | None = None,
    colors: Literal["mmseg", "dinov3"] | None = None,
    fit: Literal["resize", "pad"] = "resize",
    window: str | int | None = None,
    stride: int | None = None,
    steps: int = 400,
    batch_size: int = 16,
    optimizer: OptimizerName = "adamw",
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    schedule: ScheduleName = "poly",
    warmup: int = 20,
    decay_norms: bool = True,
    loss_over: CountedPixels = "labelled",
    cache: str | None = None,
    cache_gb: float = 50.0,
    validate_every: int = 0,
    save_every: int = 100,
    log_every: int = 20,
    overlays: int = 8,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    check: bool = True,
    overwrite: bool = False,
) -> int:
    """Trains a segmentation head on a frozen backbone, and scores it.

    The data set is looked through first. Killed or stopped, the same command goes on, and ends with the weights of a
    run that was never stopped. The defaults suit small data; configs/segmentation has published protocols.

    Args:
        data: Folder of the data set; or scenes for drawn scenes of one thing each, in the layout of ADE20K, and
            scenes-several for scenes of one to four.
        out: Folder for the head, checkpoint, log, curves, results.json and overlays.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, hf/NAME, or raw/14 for raw
            patches.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        head: linear, upernet, or knn, which needs one pass over the data.
        head_options: Other arguments of the head, such as {"dropout": 0.1}.
        layers: Blocks that the head reads: -1, 0,11,23, last4 or even4; UperNet reads one or four.
        norm: Whether to apply the model's final norm to each.
        mode: online runs augmented crops through the backbone; cached extracts the grids of whole images once and
            crops and mirrors these.
        layout: How the data set is laid out; folder is images/train with masks/train, and the same for val.
        class_map: JSON file with the name of each id in the masks, null where its pixels do not count; in place of
            reduce_zero_label and ignore_label.
        reduce_zero_label: Whether 0 does not count and classes start at 1.
        ignore_label: The id of pixels that do not count.
        resize: Size at which images are looked at: the model's own rule (auto), native (keep size), short512 (the
            shorter side), or 448x672.
        max_tokens: Patches of a whole image at most under the native rule; by default the model's own.
        crop: Side of the training crops in pixels, or 448x672; whole patches.
        jitter: Lowest and highest factor on the size of training images, online; by default [0.5,2.0].
        flip: Whether every second training crop is mirrored.
        distort: Whether the colors of training images are varied, online; by default true.
        colors: How they are: as mmsegmentation does it (mmseg, the default) or DINOv3, which turns the hue five times
            as far and mixes with gray in place of changing the saturation.
        fit: How images that are scored are brought to whole patches: resize rounds each side up; pad keeps the size
            and adds a border at the bottom and at the right.
        window: Windows of sliding inference in pixels; whole images by default.
        stride: How far a window is from the next; two thirds of the window by default.
        steps: Batches to train on.
        batch_size: Crops in a batch.
        optimizer: adamw, or sgd with momentum 0.9.
        learning_rate: Its highest value.
        weight_decay: As the optimizer has it.
        schedule: How the learning rate falls behind the warm-up: poly (in a line to 0), cosine or constant; or as in
            the code of a published recipe: poly_mmseg, cosine_dinov3, cosine_timm or cosine_mae.
        warmup: Steps in which the learning rate rises.
        decay_norms: Whether weight decay applies to norms and biases too.
        loss_over: Pixels over which the loss of a batch is a mean: labelled, or all, as mmsegmentation and DINOv3
            have it, where it is smaller, the fewer pixels have a label.
        cache: Folder for cached grids; OUT/cache by default. Runs on the same features can share it.
        cache_gb: What cached grids may take on disk, in GB; more is refused before anything is computed.
        validate_every: Steps between scores while training; 0 scores only the end.
        save_every: Steps between checkpoints; 0 writes one only at the end.
        log_every: Steps between lines of the log; 0 writes one only at the end.
        overlays: Validation images to draw beside mask and prediction.
        seed: Decides everything that is random.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU. Heads use float32.
        check: Whether to look through all masks before training.
        overwrite: Whether to delete an earlier run in the folder first.

    Returns:
        Exit status: 0 done, 130 or 143 stopped by a signal.
    """
    crop, window = str(crop), None if window is None else str(window)
    request = TrainRequest(**locals())
    check_owner(request.folder, TRAIN)
    source, spec = training.choose_features(request)
    training.check_head(request, [spec.embed_dim] * len(source.layers))
    training_data, validation_data = training.open_data(request)
    announce(model)
    settings = request.decisive(training_data)
    if not overwrite:
        check_run(request.folder, settings)
    features = training.cache(request, source, training_data) if mode == "cached" else None
    segmenter, trained = training.build_segmenter(request, source, training_data)
    settings = {**settings, "weights": trained.source.weights}
    claim(request.folder, settings, overwrite)
    batches = training.build_batches(request, segmenter, training_data, features)
    run = training.Run(request, segmenter, trained, validation_data)
    status = run.learn(batches, settings, len(training_data))
    if status:
        return status
    print(run.finish())
    return 0
