"""A run of `sail segment train`: backbone, head and batches, learning, and the report at its end."""

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.plots import plot_curves, save
from evals.segmentation.augment import Augmentation
from evals.segmentation.batches import Batch, Batches, CachedBatches, OnlineBatches, cache_grids, check_budget
from evals.segmentation.data import SegmentationData
from evals.segmentation.extremes import show_extremes
from evals.segmentation.option_checks import inference_of, read_windows, whole_patches
from evals.segmentation.options import JITTER, CountedPixels, TrainOptions, build_head
from evals.segmentation.run_folders import CHECKPOINT, CURVES, LOG, check_run, claim
from evals.segmentation.scores import Gallery, score, write_report
from heads.dense import IGNORE
from heads.dense.contract import DenseHead, OnePassHead
from heads.dense.registry import TrainedHead, save_dense_head
from heads.dense.segmenter import Segmenter
from heads.trainer import Trainer, read_log
from sail_encoder.backbones.registry import load_for
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.io.runs import read_run

CACHE = "cache"
"""Folder of cached grids in that of a run, unless the options name another."""


def build_segmenter(
    options: TrainOptions, source: FeatureSpec, data: SegmentationData
) -> tuple[Segmenter, TrainedHead]:
    """The frozen backbone and a new head, which is a function of the seed."""
    backbone = load_for(replace(source, precision=options.precision), options.device)
    source = replace(source, weights=backbone.fingerprint(source.depth - 1))
    torch.manual_seed(options.seed)
    classes, ids = data.class_map.names, data.class_map.ids
    head = build_head(options, [backbone.spec.channels("none", source.class_token)] * len(source.layers), len(classes))
    windows = read_windows(options.window, options.stride, backbone.patch_size)
    trained = TrainedHead(options.head, head, source, classes, options.mode, *windows, options.fit, data.layout, ids)
    return Segmenter(backbone, head, source), trained


def build_batches(options: TrainOptions, segmenter: Segmenter, data: SegmentationData) -> Batches:
    """Batches through the backbone, or of grids that are extracted first where the cache lacks them."""
    backbone, source = segmenter.backbone, segmenter.source
    crop = whole_patches("crop", options.crop, backbone.patch_size)
    flip, batch_size, seed = options.flip, options.batch_size, options.seed
    if options.mode == "online":
        distort = options.distort is not False
        augmentation = Augmentation(
            crop, source.size, options.jitter or JITTER, flip, distort, options.colors or "mmseg"
        )
        return OnlineBatches(segmenter, data, augmentation, batch_size, seed)
    features = cache_grids(data.samples, backbone, source, Path(options.cache or options.folder / CACHE))
    p = backbone.patch_size
    patches = (crop[0] // p, crop[1] // p)
    return CachedBatches(features, data, patches, p, flip, batch_size, seed, backbone.device)


def train_head(
    options: TrainOptions,
    source: FeatureSpec,
    spec: BackboneSpec,
    training: SegmentationData,
    validation: SegmentationData,
) -> tuple[int, str]:
    """Trains a head in its folder, from the last checkpoint if there is one, and scores it.

    Args:
        options: What was asked for.
        source: Which features the head reads.
        spec: Of which backbone.
        training: What it learns from.
        validation: What it is scored on.

    Returns:
        0 and the table of scores, or the exit status where a signal has stopped it.

    Raises:
        UserError: If a run with other settings is in the folder, or the cache is larger than its budget.
        SystemExit: If a signal has stopped the extraction of cached grids.
    """
    settings = options.decisive(training)
    if not options.overwrite:
        check_run(options.folder, settings)
    if options.mode == "cached":
        check_budget(training.samples, spec, source, options.cache_gb)
    segmenter, trained = build_segmenter(options, source, training)
    settings = {**settings, "weights": trained.source.weights}
    claim(options.folder, settings, options.overwrite)
    run = Run(options, segmenter, trained, validation)
    status = run.learn(build_batches(options, segmenter, training), settings, len(training))
    return (status, "") if status else (0, run.finish())


class Run:
    """One run in its folder.

    Args:
        options: What was asked for.
        segmenter: Backbone and head.
        trained: The same head with its classes and windows.
        validation: What it is scored on.
    """

    def __init__(
        self, options: TrainOptions, segmenter: Segmenter, trained: TrainedHead, validation: SegmentationData
    ) -> None:
        self.options = options
        self.folder = options.folder
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
        head, recipe = self.segmenter.head, self.options.recipe
        if isinstance(head, OnePassHead):
            count = min(recipe.all_steps, math.ceil(images / recipe.batch_size))
            head.fit(batches.between(0, count), count)
        elif status := self._train(head, batches, settings):
            return status
        save_dense_head(self.folder, self.trained)
        return 0

    def _train(self, head: DenseHead, batches: Batches, settings: Mapping[str, Any]) -> int:
        options = self.options
        trainer = Trainer(
            head,
            options.recipe,
            lambda head, batch: batch_loss(head, batch, options.loss_over),
            checkpoint=self.folder / CHECKPOINT,
            log=self.folder / LOG,
            settings=settings,
        )
        trainer.resume()
        return trainer.run(
            batches.between,
            log_every=options.log_every,
            save_every=options.save_every,
            validate_every=options.validate_every,
            validate=self._validate,
        )

    def _validate(self) -> dict[str, Any]:
        scores = score(self.segmenter, self.inference, self.validation)
        return {"mIoU": scores.mean_iou, "mAcc": scores.mean_accuracy, "aAcc": scores.pixel_accuracy}

    def finish(self) -> str:
        """Scores the head, writes results, pictures and curves, and returns the table."""
        with Gallery(self.validation, self.folder, self.options.overlays) as keep:
            scores = score(self.segmenter, self.inference, self.validation, keep)
        show_extremes(self.segmenter, self.inference, self.validation, scores, self.folder, self.options.overlays)
        save_curves(self.folder, {"mIoU": scores.mean_iou})
        run = read_run(self.folder)
        return write_report(
            self.folder,
            scores,
            self.trained,
            self.inference,
            len(self.validation),
            f"{self.options.data}, validation",
            run["settings"] if run else {},
            self.options.latex,
        )


def save_curves(folder: Path, final: Mapping[str, Any]) -> None:
    """Draws the curves of a run from its log, with its last scores; says so where that cannot be done."""
    lines = read_log(folder / LOG)
    if not lines:
        return
    try:
        save(plot_curves([*lines, {"step": lines[-1]["step"], **final}]), folder / CURVES)
    except ImportError:
        print("no curves.png without matplotlib; pip install matplotlib", file=sys.stderr)


def batch_loss(head: DenseHead, batch: Batch, over: CountedPixels) -> Tensor:
    """The loss of a batch; as a mean over all pixels it is smaller, the fewer of them have a label."""
    maps, labels = batch
    loss = head.loss(maps, labels)
    return loss * labels.ne(IGNORE).float().mean() if over == "all" else loss
