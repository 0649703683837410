"""Options of `sail segment train`, and what they choose: features, data and the head."""

import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evals.segmentation.data import SegmentationData
from evals.segmentation.layouts import SCENES, DataSource, draw_scenes
from evals.segmentation.option_checks import HIGHEST_SEED, check_folder, check_range, read_windows, whole_patches
from evals.segmentation.pairs import LayoutName
from heads.dense import registry
from heads.dense.registry import build_dense_head
from heads.recipe import OptimizerName, Recipe
from heads.registry import require_head
from heads.schedules import WARMUP_START, ScheduleName
from sail_encoder.backbones.registry import check_features, choose_backbone, resolve_features
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.io.devices import check_device, choose_device, choose_dtype
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.fingerprints import digest

if TYPE_CHECKING:
    from heads.dense.contract import DenseHead

CountedPixels = Literal["labelled", "all"]
"""Pixels over which the loss of a batch is a mean."""

JITTER = (0.5, 2.0)
"""Lowest and highest factor on the size of training images by default."""

_SHOWN = 10
"""Names of classes that are printed."""

_HOW_IT_RUNS = {
    *("out", "device", "cache", "cache_gb", "check", "overwrite", "weights"),
    *("validate_every", "save_every", "log_every", "overlays", "latex", "given"),
}
"""Options that do not change the head that comes out, and the file of weights, of which the fingerprint tells more."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of `sail segment train`: how a head is trained on a frozen backbone, or a Pixel-SAIL as a whole.

    Attributes:
        data: Folder of the data set; or scenes for drawn scenes of one thing each, in the layout of ADE20K, and
            scenes-several for scenes of one to four. With --head referring, a folder with the files of RefCOCO,
            RefCOCO+, RefCOCOg or gRefCOCO, one of its files of expressions, or scenes-referring for drawn scenes.
        out: Folder for the head, checkpoint, log, curves, results.json, results.md and overlays.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, hf/NAME, or raw/14 for raw
            patches.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        head: linear, upernet, or knn, which needs one pass over the data; or referring, which trains the model itself:
            out becomes a Pixel-SAIL, made of a SAIL, or gone on with.
        head_options: Other arguments of the head, such as {"dropout": 0.1}; of referring mask_channels, head_channels,
            expressions, lora, clip, gradient_checkpointing, train_num_points, mask_weight, dice_weight and text_weight.
        layers: Blocks that the head reads: -1, 0,11,23, last4 or even4; UperNet reads one or four.
        norm: Whether to apply the model's final norm to each.
        class_token: Whether the head reads the image's class token beside each patch, of models that have one.
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
        schedule: How the learning rate falls after the warm-up: poly (in a line to 0), cosine or constant; or as in
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
        overlays: Validation images to draw beside mask and prediction; with any, also the worst and the best of all.
        latex: Whether to write the tables as results.tex too.
        seed: Decides everything that is random.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU. Heads use float32.
        check: Whether to look through all masks before training.
        overwrite: Whether to delete an earlier run in the folder first.
        given: Names of the options that a command was given, whatever their values.

    Raises:
        UserError: If one of them is not possible, as far as the options by themselves tell it.
    """

    data: str
    out: str
    model: str = "sail-tiny"
    weights: str | None = None
    random_weights: bool = False
    max_tiles: int | None = None
    msac: bool = False
    project: bool = False
    head: str = "linear"
    head_options: dict[str, Any] | None = None
    layers: str = "-1"
    norm: bool = True
    class_token: bool = False
    mode: Literal["online", "cached"] = "online"
    layout: LayoutName = "folder"
    class_map: str | None = None
    reduce_zero_label: bool = False
    ignore_label: int = 255
    resize: str = "auto"
    max_tokens: int | None = None
    crop: str = "112"
    jitter: tuple[float, float] | None = None
    flip: bool = True
    distort: bool | None = None
    colors: Literal["mmseg", "dinov3"] | None = None
    fit: Literal["resize", "pad"] = "resize"
    window: str | None = None
    stride: int | None = None
    steps: int = 400
    batch_size: int = 16
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: ScheduleName = "poly"
    warmup: int = 20
    decay_norms: bool = True
    loss_over: CountedPixels = "labelled"
    cache: str | None = None
    cache_gb: float = 50.0
    validate_every: int = 0
    save_every: int = 100
    log_every: int = 20
    overlays: int = 8
    latex: bool = False
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    check: bool = True
    overwrite: bool = False
    given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    @classmethod
    def from_given(cls, **given: Any) -> "TrainOptions":
        """Options of a command, which know which of them were given."""
        options = cls(**given)
        object.__setattr__(options, "given", frozenset(given))
        return options

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, HIGHEST_SEED)
        check_range("overlays", self.overlays, 0)
        for name in ("validate_every", "save_every", "log_every"):
            check_range(name, getattr(self, name), 0)
        for name in ("steps", "batch_size"):
            check_range(name, getattr(self, name), 1)
        if not 0 <= self.warmup < self.steps:
            raise UserError(f"--warmup cannot be {self.warmup}; allowed is 0 to {self.steps - 1}, below --steps")
        require_positive("learning_rate", self.learning_rate)
        if self.weight_decay < 0:
            raise UserError(f"--weight_decay cannot be {self.weight_decay}; allowed is 0 or more")
        check_device(self.device)
        check_folder("out", self.out)
        check_folder("cache", self.cache)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.out)

    @property
    def recipe(self) -> Recipe:
        """Recipe of the training; the warm-up is mmsegmentation's."""
        return Recipe(
            (self.learning_rate,),
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            decay_norms=self.decay_norms,
            schedule=self.schedule,
            warmup=self.warmup,
            warmup_start=WARMUP_START,
        )

    def decisive(self, training_data: SegmentationData) -> dict[str, Any]:
        """All that decides the head that comes out, but for the pixels and the weights of the backbone.

        A class map counts by what it says, not by the name of its file.
        """
        dtype = choose_dtype(self.precision, choose_device(self.device))
        ids = sorted(training_data.class_map.ids.items())
        names = [sample.name for sample in training_data.samples]
        return {
            **{name: value for name, value in asdict(self).items() if name not in _HOW_IT_RUNS},
            "data": self.data if self.data in SCENES else os.path.abspath(self.data),
            "precision": str(dtype).removeprefix("torch."),
            "class_map": digest(ids, 12),
            "training_images": f"{len(names)} named {digest(names, 12)}",
            "classes": training_data.class_map.names,
        }


def choose_features(options: TrainOptions) -> tuple[FeatureSpec, BackboneSpec]:
    """Features that the head reads, and their backbone; checks all that can be before torch is imported.

    The fingerprint of the weights is not known yet.
    """
    online = options.mode == "online"
    for name, needed in (("jitter", "online"), ("distort", "online"), ("colors", "online"), ("cache", "cached")):
        if getattr(options, name) is not None and (needed == "online") != online:
            raise UserError(f"--{name} has no effect with --mode {options.mode}; leave it out, or use {needed}")
    if options.colors is not None and options.distort is False:
        raise UserError(f"--colors {options.colors} has no effect with --distort false; leave one of them out")
    low, high = options.jitter or JITTER
    if not 0 < low <= high:
        raise UserError(f"--jitter cannot be [{low},{high}]; allowed are two factors above 0, the lower one first")
    require_head(options.head, registry.BUILT_IN, registry.GROUP)
    check_features(options.layers, options.resize, options.max_tokens)
    _check_place(options)
    chosen = choose_backbone(options.weights, options.random_weights, options.max_tiles, options.msac, options.project)
    spec, source = resolve_features(
        options.model,
        options.layers,
        options.resize,
        options.max_tokens,
        norm=options.norm,
        class_token=options.class_token,
        **chosen,
    )
    whole_patches("crop", options.crop, spec.patch_size)
    read_windows(options.window, options.stride, spec.patch_size)
    return source, spec


def _check_place(options: TrainOptions) -> None:
    """Makes sure that there are data, before they are looked through."""
    if options.data not in SCENES:
        _data_source(options).check_place("train", "val")
    elif options.layout not in ("folder", "ade20k"):
        raise UserError(f"--layout cannot be {options.layout} with drawn scenes, which have their own; leave it out")


def _data_source(options: TrainOptions) -> DataSource:
    return DataSource(options.data, options.layout, options.class_map, options.reduce_zero_label, options.ignore_label)


def check_head(options: TrainOptions, in_channels: list[int]) -> None:
    """Builds the head without memory, to find what is wrong with its options before the data are looked through."""
    import torch

    with torch.device("meta"):
        build_head(options, in_channels, 2)


def open_data(options: TrainOptions) -> tuple[SegmentationData, SegmentationData]:
    """The training and the validation data, looked through."""
    source = _data_source(options)
    if options.data in SCENES:
        source = replace(source, root=str(_draw_scenes(options)), layout="ade20k")
    training, validation = source.open("train", "val", check=options.check)
    classes = training.class_map.names
    print(
        f"{len(training):,} training and {len(validation):,} validation images, {len(classes)} classes: "
        f"{', '.join(classes[:_SHOWN])}{', ...' if len(classes) > _SHOWN else ''}",
        file=sys.stderr,
    )
    return training, validation


def _draw_scenes(options: TrainOptions) -> Path:
    """Draws the scenes into the run's own folder."""
    folder = options.folder / options.data
    draw_scenes(folder, options.data)
    return folder


def build_head(options: TrainOptions, in_channels: list[int], num_classes: int) -> "DenseHead":
    """A new head for features of these channels.

    Raises:
        UserError: If its options set what is not theirs to set.
    """
    given = options.head_options or {}
    for name in ("kind", "in_channels", "num_classes"):
        if name in given:
            raise UserError(f"--head_options cannot set {name}, which model, layers and data decide; leave it out")
    return build_dense_head(options.head, in_channels, num_classes, **given)
