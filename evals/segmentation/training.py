"""From the options of `sail segment train` to the objects that do the work."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from evals.segmentation.batches import Batch, Batches, cache_grids
from evals.segmentation.data import SegmentationData
from evals.segmentation.folders import CHECKPOINT, CURVES, LOG
from evals.segmentation.inference import inference_of, read_windows, whole_patches
from evals.segmentation.options import CountedPixels, TrainRequest
from evals.segmentation.scores import Gallery, score, write_report
from evals.segmentation.sources import SCENES, DataSource, draw_scenes
from heads.contract import require_same_features
from heads.dense import IGNORE, registry
from heads.dense.contract import DenseHead, OnePassHead
from heads.dense.registry import TrainedHead, build_dense_head, save_dense_head
from heads.dense.segmenter import Segmenter
from heads.registry import require_head
from heads.trainer import Trainer, read_log
from sail_encoder.backbones.registry import check_features, choose_backbone, load_for, resolve_features
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import replacing
from sail_encoder.store.reading import FeatureFolder

if TYPE_CHECKING:
    from evals.segmentation.batches import Batches
    from heads.dense.contract import DenseHead
    from heads.dense.segmenter import Segmenter


JITTER = (0.5, 2.0)
_CACHE = "cache"
_SHOWN = 10


def choose_features(request: TrainRequest) -> tuple[FeatureSpec, BackboneSpec]:
    """Which features the head reads, and of which backbone; checks all that can be before torch is imported.

    The fingerprint of the weights is not known yet.
    """
    online = request.mode == "online"
    for name, needed in (("jitter", "online"), ("distort", "online"), ("colors", "online"), ("cache", "cached")):
        if getattr(request, name) is not None and (needed == "online") != online:
            raise UserError(f"--{name} has no effect with --mode {request.mode}; leave it out, or use {needed}")
    if request.colors is not None and request.distort is False:
        raise UserError(f"--colors {request.colors} has no effect with --distort false; leave one of them out")
    low, high = request.jitter or JITTER
    if not 0 < low <= high:
        raise UserError(f"--jitter cannot be [{low},{high}]; allowed are two factors above 0, the lower one first")
    require_head(request.head, registry.BUILT_IN, registry.GROUP)
    check_features(request.layers, request.resize, request.max_tokens)
    _check_place(request)
    chosen = choose_backbone(request.weights, request.random_weights, request.max_tiles, request.msac, request.project)
    spec, source = resolve_features(
        request.model, request.layers, request.resize, request.max_tokens, norm=request.norm, **chosen
    )
    whole_patches("crop", request.crop, spec.patch_size)
    read_windows(request.window, request.stride, spec.patch_size)
    return source, spec


def _check_place(request: TrainRequest) -> None:
    """Makes sure that there are data, before they are looked through."""
    if request.data not in SCENES:
        _data_source(request).check_place("train", "val")
    elif request.layout not in ("folder", "ade20k"):
        raise UserError(f"--layout cannot be {request.layout} with drawn scenes, which have their own; leave it out")


def _data_source(request: TrainRequest) -> DataSource:
    return DataSource(request.data, request.layout, request.class_map, request.reduce_zero_label, request.ignore_label)


def check_head(request: TrainRequest, in_channels: list[int]) -> None:
    """Builds the head without memory, to find what is wrong with its options before the data are looked through."""
    import torch

    with torch.device("meta"):
        _build_head(request, in_channels, 2)


def open_data(request: TrainRequest) -> tuple[SegmentationData, SegmentationData]:
    """The training and the validation data, looked through."""
    source = _data_source(request)
    if request.data in SCENES:
        source = replace(source, root=str(_draw_scenes(request)), layout="ade20k")
    training, validation = source.open("train", "val", check=request.check)
    classes = training.class_map.names
    print(
        f"{len(training):,} training and {len(validation):,} validation images, {len(classes)} classes: "
        f"{', '.join(classes[:_SHOWN])}{', ...' if len(classes) > _SHOWN else ''}",
        file=sys.stderr,
    )
    return training, validation


def _draw_scenes(request: TrainRequest) -> Path:
    """Draws the scenes into the run's own folder."""
    folder = request.folder / request.data
    draw_scenes(folder, request.data)
    return folder


def cache(request: TrainRequest, source: FeatureSpec, data: SegmentationData) -> FeatureFolder:
    """The grids of all training images; made before the backbone is loaded here, so that it is not held twice."""
    folder = Path(request.cache or request.folder / _CACHE)
    return cache_grids(data.samples, source, folder, request.cache_gb, request.precision, request.device)


def build_segmenter(
    request: TrainRequest, source: FeatureSpec, data: SegmentationData
) -> "tuple[Segmenter, TrainedHead]":
    """The frozen backbone and a new head, which is a function of the seed."""
    import torch

    from heads.dense.segmenter import Segmenter

    backbone = load_for(replace(source, precision=request.precision), request.device)
    source = replace(source, weights=backbone.fingerprint(source.depth - 1))
    torch.manual_seed(request.seed)
    classes, ids = data.class_map.names, data.class_map.ids
    head = _build_head(request, [backbone.embed_dim] * len(source.layers), len(classes))
    windows = read_windows(request.window, request.stride, backbone.patch_size)
    trained = TrainedHead(request.head, head, source, classes, request.mode, *windows, request.fit, data.layout, ids)
    return Segmenter(backbone, head, source), trained


def _build_head(request: TrainRequest, in_channels: list[int], num_classes: int) -> "DenseHead":
    options = request.head_options or {}
    for name in ("kind", "in_channels", "num_classes"):
        if name in options:
            raise UserError(f"--head_options cannot set {name}, which model, layers and data decide; leave it out")
    return build_dense_head(request.head, in_channels, num_classes, **options)


def build_batches(
    request: TrainRequest, segmenter: "Segmenter", data: SegmentationData, features: FeatureFolder | None
) -> "Batches":
    """Batches through the backbone, or of the features that were cached."""
    from evals.segmentation.augment import Augmentation
    from evals.segmentation.batches import CachedBatches, OnlineBatches

    backbone, source = segmenter.backbone, segmenter.source
    crop = whole_patches("crop", request.crop, backbone.patch_size)
    flip, batch_size, seed = request.flip, request.batch_size, request.seed
    if features is None:
        distort = request.distort is not False
        augmentation = Augmentation(
            crop, source.size, request.jitter or JITTER, flip, distort, request.colors or "mmseg"
        )
        return OnlineBatches(segmenter, data, augmentation, batch_size, seed)
    require_same_features(source, replace(source, weights=features.spec.weights))
    p = backbone.patch_size
    patches = (crop[0] // p, crop[1] // p)
    return CachedBatches(features, data, patches, p, flip, batch_size, seed, backbone.device)


class Run:
    """One run in its folder.

    Args:
        request: What was asked for.
        segmenter: Backbone and head.
        trained: The same head with its classes and windows.
        validation: What it is scored on.
    """

    def __init__(
        self, request: TrainRequest, segmenter: Segmenter, trained: TrainedHead, validation: SegmentationData
    ) -> None:
        self.request = request
        self.folder = request.folder
        self.segmenter = segmenter
        self.trained = trained
        self.validation = validation
        self.inference = inference_of(trained, segmenter.backbone.patch_size)

    def learn(self, batches: Batches, settings: Mapping[str, Any], images: int) -> int:
        """Trains the head, from the last checkpoint if there is one, and saves it.

        Args:
            batches: Where batches come from.
            settings: All that decides the head.
            images: How many training images there are; a head without gradients sees each once.

        Returns:
            0, or the exit status where a signal has stopped it.
        """
        head, recipe = self.segmenter.head, self.request.recipe
        if isinstance(head, OnePassHead):
            count = min(recipe.all_steps, math.ceil(images / recipe.batch_size))
            head.fit(((batch.maps, batch.labels) for batch in batches.between(0, count)), count)
        elif status := self._train(head, batches, settings):
            return status
        save_dense_head(self.folder, self.trained)
        return 0

    def _train(self, head: DenseHead, batches: Batches, settings: Mapping[str, Any]) -> int:
        request = self.request
        trainer = Trainer(
            head,
            request.recipe,
            lambda head, batch: batch_loss(head, batch, request.loss_over),
            checkpoint=self.folder / CHECKPOINT,
            log=self.folder / LOG,
            settings=settings,
        )
        trainer.resume()
        return trainer.run(
            batches.between,
            log_every=request.log_every,
            save_every=request.save_every,
            validate_every=request.validate_every,
            validate=self._validate,
        )

    def _validate(self) -> dict[str, Any]:
        scores = score(self.segmenter, self.inference, self.validation)
        return {"mIoU": scores.mean_iou, "mAcc": scores.mean_accuracy, "aAcc": scores.pixel_accuracy}

    def finish(self) -> str:
        """Scores the head, writes results, pictures and curves, and returns the table."""
        with Gallery(self.validation, self.folder, self.request.overlays) as keep:
            scores = score(self.segmenter, self.inference, self.validation, keep)
        self._draw_curves(scores.mean_iou)
        return write_report(self.folder, scores, self.trained, self.inference, len(self.validation))

    def _draw_curves(self, mean_iou: float) -> None:
        lines = read_log(self.folder / LOG)
        if not lines:
            return
        try:
            draw_curves([*lines, {"step": lines[-1]["step"], "mIoU": mean_iou}], self.folder / CURVES)
        except ImportError:
            print("no curves.png without matplotlib; pip install matplotlib", file=sys.stderr)


def batch_loss(head: DenseHead, batch: Batch, over: CountedPixels) -> Tensor:
    """The loss of a batch; as a mean over all pixels it is smaller, the fewer of them have a label."""
    loss = head.loss(batch.maps, batch.labels)
    return loss * batch.labels.ne(IGNORE).float().mean() if over == "all" else loss


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss, learning rate and mIoU over the steps.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = [name for name in ("loss", "learning_rate", "mIoU") if any(name in line for line in lines)]
    figure = Figure((4 * len(names), 3), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 30 else None)
        axes.set(title=name.replace("_", " "), xlabel="step")
    with replacing(path) as unfinished:
        figure.savefig(unfinished)
