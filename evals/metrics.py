"""Metrics of a probe on the test set: scikit-learn's, with the conventions of torchmetrics.

DINOv2 and DINOv3 report torchmetrics' MulticlassAccuracy. It differs where classes are absent or scores are equal.
"""

import numpy as np
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    recall_score,
)

from heads.contract import HeadError
from heads.probe import Probe
from heads.targets import Kind
from sail_encoder.images.decoding import Array

PRIMARY: dict[Kind, str] = {"classification": "top1", "multilabel": "mAP", "regression": "r2"}
"""The one number that stands for a probe."""


def measure(probe: Probe, scores: Array, truth: Array) -> dict[str, float]:
    """All metrics of a kind of targets.

    Args:
        probe: A fitted probe.
        scores: [n, outputs], what it computes for the test set.
        truth: Targets of the test set, in the form of the training set's.

    Returns:
        For classes `top1`, `top5` (of six classes or more), `mean_per_class` (the mean of the recalls of all classes
        that occur or are predicted; one that is only predicted counts 0) and `f1` (mean over the same classes); for
        labels `mAP` (mean over the labels that occur),
        `f1`, `f1_micro` and `exact` (all labels right); for numbers `r2` and `mae`.

    Raises:
        HeadError: If a class of the test set was not in the training set.
    """
    kind, decided = probe.targets_.kind, probe.decide(scores)
    if kind == "regression":
        return {"r2": r2_score(truth, decided), "mae": mean_absolute_error(truth, decided)}
    if kind == "multilabel":
        occurs = truth.any(0)
        return {
            "mAP": average_precision_score(truth[:, occurs], scores[:, occurs], average="macro"),
            "f1": f1_score(truth, decided, average="macro", zero_division=0),
            "f1_micro": f1_score(truth, decided, average="micro", zero_division=0),
            "exact": accuracy_score(truth, decided),
        }
    classes = probe.targets_.classes
    unknown = sorted(set(truth.tolist()) - set(classes.tolist()))
    if unknown:
        raise HeadError(f"{len(unknown)} classes of the test set are not in the training set, such as '{unknown[0]}'")
    metrics = {"top1": accuracy_score(truth, decided)}
    if len(classes) > 5:
        indices = np.searchsorted(classes, truth)
        # PyTorch's order among equal scores, as torchmetrics has it: few votes of kNN leave most classes at zero.
        highest = torch.from_numpy(scores).topk(5).indices.numpy()
        metrics["top5"] = float((highest == indices[:, None]).any(1).mean())
    metrics["mean_per_class"] = recall_score(truth, decided, average="macro", zero_division=0)
    metrics["f1"] = f1_score(truth, decided, average="macro", zero_division=0)
    return metrics
