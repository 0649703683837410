"""Scores of label maps: intersection over union and accuracy, by class and on average."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evals.plots import plot_iou, save
from evals.report import Table, describe_features, write_tables
from evals.segmentation.data import SegmentationData
from evals.segmentation.predictions import save_comparisons, save_labels
from evals.segmentation.run_folders import IOU, LABELS, OVERLAYS, PICTURES, RESULTS, as_picture
from heads.dense import IGNORE
from heads.dense.inference import Inference, predict
from heads.dense.segmenter import Segmenter
from sail_encoder.images.decoding import Array
from sail_encoder.io.devices import count_readers
from sail_encoder.io.files import write_json
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.threads import BackgroundWriter, map_ahead

if TYPE_CHECKING:
    from heads.dense.registry import TrainedHead


class ConfusionMatrix:
    """Counts how often each true class was predicted as each class.

    The counts stay on the device until `scores` is called, so that no image waits for the one before.

    Args:
        num_classes: How many classes there are.
        device: Where predictions are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Takes the predictions of some pixels.

        Args:
            predicted: Classes, any shape.
            labels: True classes, the same shape; `IGNORE` does not count.

        Returns:
            The mean IoU of these pixels, a scalar on the device; NaN where none counts.
        """
        classes = len(self.counts)
        # Pixels that do not count go into a bin of their own, so that the device need not say how many there are.
        bins = torch.where(labels == IGNORE, classes * classes, labels.long() * classes + predicted.long())
        counts = torch.bincount(bins.flatten(), minlength=classes * classes + 1)
        counts = counts[:-1].view(classes, classes)
        self.counts += counts
        right = counts.diagonal().double()
        return (right / (counts.sum(0) + counts.sum(1) - right)).nanmean()

    def scores(self) -> "Scores":
        """The scores of all pixels so far."""
        counts = self.counts.cpu().double()
        right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        return Scores(
            iou=(right / (true + predicted - right)).tolist(),
            accuracy=(right / true).tolist(),
            pixel_accuracy=float(right.sum() / true.sum()),
        )


@dataclass(frozen=True)
class Scores:
    """The scores that segmentation papers report, as shares.

    A class that is neither present nor predicted has no IoU, and one that is not present no accuracy; these are NaN
    and left out of the means, as in mmsegmentation.

    Attributes:
        iou: For each class the intersection of prediction and truth over their union.
        accuracy: For each class the share of its pixels that are found.
        pixel_accuracy: The share of all pixels that are right (aAcc).
        images: For each image its own mean IoU, over the classes in its mask or prediction; no score of papers.
    """

    iou: list[float]
    accuracy: list[float]
    pixel_accuracy: float
    images: Sequence[float] = ()

    @property
    def mean_iou(self) -> float:
        """MIoU."""
        return _nanmean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """MAcc."""
        return _nanmean(self.accuracy)

    def as_dict(self, names: list[str]) -> dict[str, Any]:
        """All scores under the names that papers use; null where there is none."""
        rows = zip(names, self.iou, self.accuracy, strict=True)
        return {
            "mIoU": _round(self.mean_iou),
            "mAcc": _round(self.mean_accuracy),
            "aAcc": _round(self.pixel_accuracy),
            "classes": {name: {"IoU": _round(iou), "Acc": _round(accuracy)} for name, iou, accuracy in rows},
        }


def format_scores(scores: dict[str, Any]) -> str:
    """A table of what `Scores.as_dict` returns, in percent, the means first."""
    width = max(map(len, ("class", *scores["classes"])))
    rows = [" ".join(f"{name} {percent(scores[name])}" for name in ("mIoU", "mAcc", "aAcc")), ""]
    rows.append(f"{'class':<{width}}  {'IoU':>6}  {'Acc':>6}")
    for name, row in scores["classes"].items():
        rows.append(f"{name:<{width}}  {percent(row['IoU']):>6}  {percent(row['Acc']):>6}")
    return "\n".join(rows)


def percent(share: float | None) -> str:
    """A share in percent with two decimals, a hyphen where there is none."""
    return "-" if share is None else f"{100 * share:.2f}"


def _round(share: float) -> float | None:
    return None if share != share else round(share, 6)


def _nanmean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanmean())


_MOST_READERS = 8
_WAITING = 16
"""Label maps that wait to be written."""

Keep = Callable[[int, Tensor], None]
"""Takes the number of an image and its label map."""


def score(segmenter: Segmenter, inference: Inference, data: SegmentationData, keep: Keep | None = None) -> Scores:
    """Predicts every image and compares with its mask.

    Args:
        segmenter: The model.
        inference: How to look at an image.
        data: Images and masks.
        keep: Called for each image, in order.
    """
    matrix, images = ConfusionMatrix(segmenter.num_classes, segmenter.backbone.device), []
    numbers = range(len(data))
    readers = min(_MOST_READERS, count_readers())
    with ThreadPoolExecutor(readers, "labels") as pool:
        predictions = predict(segmenter, inference, numbers, data.read_image)
        masks = map_ahead(data.read_labels, numbers, pool, 2 * readers)
        progress = tqdm(zip(predictions, masks, strict=True), "scoring", len(data), unit="img", disable=None)
        for number, (predicted, labels) in enumerate(progress):
            images.append(matrix.add(predicted, torch.from_numpy(labels).to(predicted.device, non_blocking=True)))
            if keep is not None:
                keep(number, predicted)
    return replace(matrix.scores(), images=torch.stack(images).tolist())


class Gallery:
    """Keeps label maps as files: of some images a comparison with the mask, of all of them index PNGs if wanted.

    Files are written in a background thread; `with` waits for them.

    Args:
        data: Images and masks.
        folder: Where `overlays/` and `labels/` go; nothing is written where it is None.
        overlays: How many images to compare, spread evenly over the data set.
        label_maps: Whether to write an index PNG of every image.
    """

    def __init__(self, data: SegmentationData, folder: Path | None, overlays: int, label_maps: bool = False) -> None:
        self.data = data
        self.folder = folder
        self.chosen = set(np.linspace(0, len(data) - 1, min(overlays, len(data))).round().astype(int).tolist())
        self.label_maps = label_maps

    def __enter__(self) -> Keep | None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.written = LineLog(self.folder / PICTURES, as_picture)
        self.pool = ThreadPoolExecutor(1, "write")
        self.writer = BackgroundWriter(self.pool, _WAITING)
        return None if self.folder is None else partial(self._keep, self.folder)

    def _keep(self, folder: Path, number: int, predicted: Tensor) -> None:
        if self.label_maps or number in self.chosen:
            self.writer.submit(self._write, folder, number, predicted.cpu().numpy())

    def _write(self, folder: Path, number: int, predicted: Array) -> None:
        name, names = self.data.samples[number].name, self.data.class_map.names
        if self.label_maps:
            self.written.append(f"{LABELS}/{name}.png")
            save_labels(predicted, names, folder / LABELS / f"{name}.png")
        if number in self.chosen:
            image, labels = self.data.read_image(number), self.data.read_labels(number)
            self.written.append(f"{OVERLAYS}/{name}.png")
            save_comparisons([("", image, labels, predicted)], names, folder / OVERLAYS / f"{name}.png")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.writer.drain()
        finally:
            self.pool.shutdown(cancel_futures=True)
            if self.folder is not None:
                self.written.close()


_TRAINING = {
    "training data": "{data}, {training_images}",
    "training crops": "{crop} pixels",
    "steps": "{steps} of {batch_size}, {optimizer}, {schedule}, warm-up {warmup}",
    "rate": "{learning_rate:g}, weight decay {weight_decay:g}",
    "seeds": "{seed}",
}
"""What the settings of a run of `sail segment train` tell about a head."""


def write_report(
    folder: Path | None,
    scores: Scores,
    trained: "TrainedHead",
    inference: "Inference",
    images: int,
    data: str,
    training: Mapping[str, Any],
    latex: bool = False,
) -> str:
    """Writes results.json and results.md, and returns the table.

    Args:
        folder: Where to write; nothing is written where it is None.
        scores: The scores.
        trained: The head.
        inference: How images were looked at.
        images: How many there were.
        data: Name of the data set.
        training: Settings of the run that has trained the head, as far as they are known.
        latex: Whether to write results.tex too.
    """
    source = trained.source
    way = {
        "backbone": source.model,
        "weights": source.weights,
        "layers": list(source.layers),
        "norm": source.norm,
        "class_token": source.class_token,
        "head": trained.kind,
        "trained": trained.mode,
        "resize": str(inference.resize),
        "max_tokens": inference.resize.max_tokens,
        "window": inference.window,
        "stride": inference.stride,
        "fit": inference.fit,
        "scales": list(inference.scales),
        "flip": inference.flip,
        "images": images,
    }
    table = scores.as_dict(trained.classes)
    layers = ", ".join(map(str, source.layers))
    lines = [
        f"{trained.kind} head, {trained.mode} training, layers {layers} of {source.model}",
        f"{images:,} images, {inference}; in percent",
        format_scores(table),
    ]
    if folder is not None:
        write_json(folder / RESULTS, {"scores": table, "protocol": way})
        # Where matplotlib is not installed, the table says the same.
        with suppress(ImportError):
            classes = {name: row["IoU"] for name, row in table["classes"].items()}
            save(plot_iou(f"{trained.kind} head on {source.title}", classes), folder / IOU)
        facts = [("data", f"{data}, {images:,} images"), *_protocol(trained, inference, training)]
        write_tables(folder, _tables(table), facts, latex)
        lines.append(f"results and pictures are in {folder}")
    return "\n".join(lines)


def _tables(scores: Mapping[str, Any]) -> list[Table]:
    """The means, and the scores of each class, in percent."""
    means = ("mIoU", "mAcc", "aAcc")
    classes = [[name, percent(row["IoU"]), percent(row["Acc"])] for name, row in scores["classes"].items()]
    return [
        [[f"{name} %" for name in means], [percent(scores[name]) for name in means]],
        [["class", "IoU %", "Acc %"], *classes],
    ]


def _protocol(trained: "TrainedHead", inference: "Inference", training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How the head was trained, as far as the settings of its run tell, and how it looks at images."""
    precision = str(training.get("precision", trained.source.precision))
    yield "model", describe_features(replace(trained.source, precision=precision, store_dtype=precision))
    yield "inference", str(inference)
    yield "head", trained.kind
    yield "mode", trained.mode
    for name, text in _TRAINING.items():
        # A head may lie in a folder by itself, or be of a version that knew fewer settings.
        with suppress(KeyError):
            yield name, text.format(**training)
