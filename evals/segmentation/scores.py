"""Scores of label maps: intersection over union and accuracy, by class and on average."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heads.dense import IGNORE


class ConfusionMatrix:
    """Counts how often each true class was predicted as each class.

    The counts stay on the device until `scores` is called, so that no image waits for the one before.

    Args:
        num_classes: How many classes there are.
        device: Where predictions are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Takes the predictions of some pixels.

        Args:
            predicted: Classes, any shape.
            labels: True classes, the same shape; `IGNORE` does not count.
        """
        classes = len(self.counts)
        # Pixels that do not count go into a bin of their own, so that the device need not say how many there are.
        bins = torch.where(labels == IGNORE, classes * classes, labels.long() * classes + predicted.long())
        counts = torch.bincount(bins.flatten(), minlength=classes * classes + 1)
        self.counts += counts[:-1].view(classes, classes)

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
    """

    iou: list[float]
    accuracy: list[float]
    pixel_accuracy: float

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
    rows = [" ".join(f"{name} {_percent(scores[name])}" for name in ("mIoU", "mAcc", "aAcc")), ""]
    rows.append(f"{'class':<{width}}  {'IoU':>6}  {'Acc':>6}")
    for name, row in scores["classes"].items():
        rows.append(f"{name:<{width}}  {_percent(row['IoU']):>6}  {_percent(row['Acc']):>6}")
    return "\n".join(rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _round(share: float) -> float | None:
    return None if share != share else round(share, 6)


def _nanmean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanmean())
