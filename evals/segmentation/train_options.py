"""From the options of `sail segment train` to the objects that do the work."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evals.segmentation.augment import Augmentation
from evals.segmentation.batches import Batches, CachedBatches, OnlineBatches
from evals.segmentation.cache import cache_grids
from evals.segmentation.data import SegmentationData
from evals.segmentation.data_source import DataSource
from evals.segmentation.inference_options import read_windows, whole_patches
from evals.segmentation.scene_data import SCENES, draw_scenes
from heads.contract import FeatureSource
from heads.dense.contract import DenseHead
from heads.dense.registry import TrainedHead, build_dense_head
from heads.dense.segmenter import Segmenter
from sail_encoder.backbone import load_backbone
from sail_encoder.errors import UserError
from sail_encoder.layers import resolve_layers
from sail_encoder.resizing import Resize
from sail_encoder.spec import describe
from sail_encoder.store.reading import FeatureFolder

JITTER = (0.5, 2.0)
_CACHE = "cache"
_SHOWN = 10


def choose_features(arguments: dict[str, Any]) -> FeatureSource:
    """Which features the head reads, and checks of all options that can be checked before anything is loaded.

    The fingerprint of the weights is not known yet.
    """
    online = arguments["mode"] == "online"
    for name, needed in (("jitter", "online"), ("distort", "online"), ("cache", "cached")):
        if arguments[name] is not None and (needed == "online") != online:
            raise UserError(f"--{name} has no effect with --mode {arguments['mode']}; leave it out, or use {needed}")
    low, high = arguments["jitter"] or JITTER
    if not 0 < low <= high:
        raise UserError(f"--jitter cannot be [{low},{high}]; allowed are two factors above 0, the lower one first")
    spec = describe(arguments["model"])
    whole_patches("crop", arguments["crop"], spec.patch_size)
    read_windows(arguments["window"], arguments["stride"], spec.patch_size)
    rule = spec.resize.override(arguments["resize"], arguments["max_tokens"])
    rule.grid((1, 1), spec.patch_size)
    layers = tuple(resolve_layers(arguments["layers"], spec.num_layers))
    with torch.device("meta"):
        _build_head(arguments, [spec.embed_dim] * len(layers), 2)
    return FeatureSource(arguments["model"], "", layers, arguments["norm"], str(rule), rule.max_tokens)


def open_data(arguments: dict[str, Any]) -> tuple[SegmentationData, SegmentationData]:
    """The training and the validation data, looked through."""
    names = ("layout", "class_map", "reduce_zero_label", "ignore_label")
    source = DataSource(arguments["data"], **{name: arguments[name] for name in names})
    if arguments["data"] == SCENES:
        folder = Path(arguments["out"]) / SCENES
        draw_scenes(folder)
        source = replace(source, root=str(folder), layout="ade20k")
    training, validation = source.open("train", "val", check=arguments["check"])
    classes = training.class_map.names
    print(
        f"{len(training):,} training and {len(validation):,} validation images, {len(classes)} classes: "
        f"{', '.join(classes[:_SHOWN])}{', ...' if len(classes) > _SHOWN else ''}",
        file=sys.stderr,
    )
    return training, validation


def cache(arguments: dict[str, Any], source: FeatureSource, data: SegmentationData) -> FeatureFolder:
    """The grids of all training images; made before the backbone is loaded here, so that it is not held twice."""
    folder = Path(arguments["cache"] or Path(arguments["out"]) / _CACHE)
    return cache_grids(data.samples, source, folder, arguments["cache_gb"], arguments["precision"], arguments["device"])


def build_segmenter(
    arguments: dict[str, Any], source: FeatureSource, classes: list[str]
) -> tuple[Segmenter, TrainedHead]:
    """The frozen backbone and a new head, which is a function of the seed."""
    depth = max(source.layers) + 1
    backbone = load_backbone(source.backbone, arguments["device"], arguments["precision"], depth)
    source = replace(source, weights=backbone.fingerprint(depth - 1))
    torch.manual_seed(arguments["seed"])
    head = _build_head(arguments, [backbone.embed_dim] * len(source.layers), len(classes))
    windows = read_windows(arguments["window"], arguments["stride"], backbone.patch_size)
    trained = TrainedHead(arguments["head"], head, source, classes, arguments["mode"], *windows)
    return Segmenter(backbone, head, source), trained


def _build_head(arguments: dict[str, Any], in_channels: list[int], num_classes: int) -> DenseHead:
    return build_dense_head(arguments["head"], in_channels, num_classes, **(arguments["head_options"] or {}))


def build_batches(
    arguments: dict[str, Any], segmenter: Segmenter, data: SegmentationData, features: FeatureFolder | None
) -> Batches:
    """Batches through the backbone, or of the features that were cached."""
    backbone, source = segmenter.backbone, segmenter.source
    crop = whole_patches("crop", arguments["crop"], backbone.patch_size)
    flip, batch_size, seed = arguments["flip"], arguments["batch_size"], arguments["seed"]
    if features is None:
        rule = Resize.parse(source.resize)
        distort = arguments["distort"] is not False
        augmentation = Augmentation(crop, rule, arguments["jitter"] or JITTER, flip, distort)
        return OnlineBatches(segmenter, data, augmentation, batch_size, seed)
    source.check(replace(source, weights=features.settings["weights"]))
    p = backbone.patch_size
    patches = (crop[0] // p, crop[1] // p)
    return CachedBatches(features, data, patches, p, flip, batch_size, seed, backbone.device)
