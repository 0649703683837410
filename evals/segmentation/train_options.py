"""From the options of `sail segment train` to the objects that do the work."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from evals.segmentation.augment import Augmentation
from evals.segmentation.batches import Batches, CachedBatches, OnlineBatches
from evals.segmentation.cache import cache_grids
from evals.segmentation.data import SegmentationData
from evals.segmentation.data_source import DataSource
from evals.segmentation.inference_options import read_windows, whole_patches
from evals.segmentation.scene_data import SCENES, draw_scenes
from evals.segmentation.train_request import TrainRequest
from heads.contract import FeatureSource
from heads.dense.contract import DenseHead
from heads.dense.registry import TrainedHead, build_dense_head
from heads.dense.segmenter import Segmenter
from sail_encoder.errors import UserError
from sail_encoder.layers import resolve_layers
from sail_encoder.loading import describe, load_backbone
from sail_encoder.resizing import Resize
from sail_encoder.store.reading import FeatureFolder

JITTER = (0.5, 2.0)
_CACHE = "cache"
_SHOWN = 10


def choose_features(request: TrainRequest) -> FeatureSource:
    """Which features the head reads, and checks of all options that can be checked before anything is loaded.

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
    spec = describe(request.model)
    whole_patches("crop", request.crop, spec.patch_size)
    read_windows(request.window, request.stride, spec.patch_size)
    rule = spec.resize.override(request.resize, request.max_tokens)
    rule.grid((1, 1), spec.patch_size)
    layers = tuple(resolve_layers(request.layers, spec.num_layers))
    with torch.device("meta"):
        _build_head(request, [spec.embed_dim] * len(layers), 2)
    return FeatureSource(request.model, "", layers, request.norm, str(rule), rule.max_tokens)


def open_data(request: TrainRequest) -> tuple[SegmentationData, SegmentationData]:
    """The training and the validation data, looked through."""
    source = DataSource(
        request.data, request.layout, request.class_map, request.reduce_zero_label, request.ignore_label
    )
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
    if request.layout not in ("folder", "ade20k"):
        raise UserError(f"--layout cannot be {request.layout} with drawn scenes, which have their own; leave it out")
    folder = request.folder / request.data
    draw_scenes(folder, request.data)
    return folder


def cache(request: TrainRequest, source: FeatureSource, data: SegmentationData) -> FeatureFolder:
    """The grids of all training images; made before the backbone is loaded here, so that it is not held twice."""
    folder = Path(request.cache or request.folder / _CACHE)
    return cache_grids(data.samples, source, folder, request.cache_gb, request.precision, request.device)


def build_segmenter(
    request: TrainRequest, source: FeatureSource, data: SegmentationData
) -> tuple[Segmenter, TrainedHead]:
    """The frozen backbone and a new head, which is a function of the seed."""
    depth = max(source.layers) + 1
    backbone = load_backbone(source.backbone, request.device, request.precision, depth)
    source = replace(source, weights=backbone.fingerprint(depth - 1))
    torch.manual_seed(request.seed)
    classes, ids = data.class_map.names, data.class_map.ids
    head = _build_head(request, [backbone.embed_dim] * len(source.layers), len(classes))
    windows = read_windows(request.window, request.stride, backbone.patch_size)
    trained = TrainedHead(request.head, head, source, classes, request.mode, *windows, request.fit, data.layout, ids)
    return Segmenter(backbone, head, source), trained


def _build_head(request: TrainRequest, in_channels: list[int], num_classes: int) -> DenseHead:
    options = request.head_options or {}
    for name in ("kind", "in_channels", "num_classes"):
        if name in options:
            raise UserError(f"--head_options cannot set {name}, which model, layers and data decide; leave it out")
    return build_dense_head(request.head, in_channels, num_classes, **options)


def build_batches(
    request: TrainRequest, segmenter: Segmenter, data: SegmentationData, features: FeatureFolder | None
) -> Batches:
    """Batches through the backbone, or of the features that were cached."""
    backbone, source = segmenter.backbone, segmenter.source
    crop = whole_patches("crop", request.crop, backbone.patch_size)
    flip, batch_size, seed = request.flip, request.batch_size, request.seed
    if features is None:
        rule = Resize.parse(source.resize)
        distort = request.distort is not False
        augmentation = Augmentation(crop, rule, request.jitter or JITTER, flip, distort, request.colors or "mmseg")
        return OnlineBatches(segmenter, data, augmentation, batch_size, seed)
    source.check(replace(source, weights=features.settings["weights"]))
    p = backbone.patch_size
    patches = (crop[0] // p, crop[1] // p)
    return CachedBatches(features, data, patches, p, flip, batch_size, seed, backbone.device)
