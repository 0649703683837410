"""Targets of a head: a class, several labels at once, or numbers; and how scores become predictions."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from heads.contract import HeadError

Array = np.ndarray[Any, Any]
Task = Literal["classification", "regression"]
"""What is asked of a head; a matrix of zeros and ones as targets of classification is several labels at once."""

TASKS: tuple[Task, ...] = get_args(Task)

Kind = Literal["classification", "multilabel", "regression"]


@dataclass(frozen=True, eq=False)
class TargetSpace:
    """The targets that a head was fitted on.

    Attributes:
        kind: `classification`, `multilabel` or `regression`.
        classes: Names of the classes, sorted, or numbers of the labels; empty for regression.
        mean: Mean of each number, [width]; zeros unless it is regression.
        scale: Standard deviation of each number, [width]; ones unless it is regression.
        flat: Whether targets are one-dimensional.
    """

    kind: Kind
    classes: Array = field(default_factory=lambda: np.empty(0))
    mean: Array = field(default_factory=lambda: np.zeros(1))
    scale: Array = field(default_factory=lambda: np.ones(1))
    flat: bool = True

    @classmethod
    def of(cls, targets: Any, task: Task) -> "TargetSpace":
        """Reads what is to be predicted from the targets of training.

        Args:
            targets: Class names or numbers [n]; zeros and ones [n, labels]; numbers [n] or [n, outputs].
            task: `classification` or `regression`.

        Raises:
            HeadError: If they cannot be learned: none at all, a single class, not finite, ...
        """
        targets = _as_array(targets)
        if not targets.size:
            raise HeadError("there are no targets, so nothing can be learned; give samples to train on")
        if targets.ndim not in (1, 2):
            raise HeadError(f"targets have the shape {targets.shape}; allowed is [n] or [n, outputs]")
        if task == "regression":
            return cls._of_numbers(targets)
        if task != "classification":
            raise HeadError(f"task '{task}' is unknown; use {' or '.join(TASKS)}")
        return cls._of_labels(targets) if targets.ndim == 2 else cls._of_classes(targets)

    @classmethod
    def _of_classes(cls, targets: Array) -> "TargetSpace":
        missing = sum(target is None or target != target or target == np.inf for target in targets.tolist())
        if missing:
            raise HeadError(
                f"{missing} of {len(targets)} labels are missing (None, NaN or inf); leave these samples out"
            )
        from sklearn.utils.multiclass import check_classification_targets

        try:
            check_classification_targets(targets)
        except ValueError as error:
            raise HeadError(f"{error} For numbers use task='regression'") from None
        classes = np.unique(targets)
        if len(classes) < 2:
            raise HeadError(f"all {len(targets)} labels are one class, '{classes[0]}'; a probe needs two at least")
        return cls("classification", classes)

    @classmethod
    def _of_labels(cls, targets: Array) -> "TargetSpace":
        values = np.unique(targets)
        if not np.isin(values, (0, 1)).all():
            raise HeadError(f"a matrix of labels holds zeros and ones; this one has {values[:5].tolist()}")
        if len(values) < 2:
            raise HeadError(f"every label of every sample is {values[0]:g}, one class; a probe needs both 0 and 1")
        width = targets.shape[1]
        return cls("multilabel", np.arange(width), np.zeros(width), np.ones(width), flat=False)

    @classmethod
    def _of_numbers(cls, targets: Array) -> "TargetSpace":
        values = _as_numbers(targets)
        spread = values.std(0)
        return cls("regression", np.empty(0), values.mean(0), np.where(spread > 0, spread, 1.0), targets.ndim == 1)

    @property
    def width(self) -> int:
        """Columns of scores: one per class, label or number."""
        return len(self.classes) if self.kind != "regression" else len(self.mean)

    def encode(self, targets: Any) -> Array:
        """Targets as a head learns them.

        Returns:
            Indices int64 [n] of classes, zeros and ones float64 [n, labels], or numbers float64 [n, outputs] brought
            to mean 0 and deviation 1.

        Raises:
            HeadError: If a class was not among those of training, or there are more or fewer numbers or labels.
        """
        targets = _as_array(targets)
        if self.kind == "classification":
            return self._encode_classes(targets)
        values = _as_numbers(targets)
        if values.shape[1] != self.width:
            raise HeadError(f"targets have {values.shape[1]} columns, those of training {self.width}; give as many")
        return (values - self.mean) / self.scale

    def _encode_classes(self, targets: Array) -> Array:
        places = np.searchsorted(self.classes, targets).clip(max=len(self.classes) - 1)
        unknown = self.classes[places] != targets
        if unknown.any():
            raise HeadError(f"class '{targets[unknown][0]}' is in the validation set, but not in the training set")
        return places

    def restore(self, outputs: Array) -> Array:
        """Scores from what a head computes: numbers get their mean and scale back, the rest stays."""
        return outputs * self.scale + self.mean if self.kind == "regression" else outputs

    def decide(self, scores: Array, threshold: float = 0.0) -> Array:
        """Predictions in the form of the targets.

        Args:
            scores: [n, width].
            threshold: Score above which a label is given, where there may be several.
        """
        if self.kind == "classification":
            return self.classes[scores.argmax(1)]
        if self.kind == "multilabel":
            return (scores > threshold).astype(int)
        return scores[:, 0] if self.flat else scores

    def quality(self, scores: Array, encoded: Array) -> float:
        """Quality of scores, more is better: accuracy, mean average precision, or R².

        Args:
            scores: [n, width].
            encoded: Targets as `encode` returns them.
        """
        from sklearn.metrics import accuracy_score, average_precision_score, r2_score

        if self.kind == "classification":
            return float(accuracy_score(encoded, scores.argmax(1)))
        if self.kind == "multilabel":
            occurs = encoded.any(0)
            return float(average_precision_score(encoded[:, occurs], scores[:, occurs], average="macro"))
        return float(r2_score(encoded, (scores - self.mean) / self.scale))

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON, for a saved head."""
        arrays = {name: getattr(self, name).tolist() for name in ("classes", "mean", "scale")}
        return {"kind": self.kind, "flat": self.flat, **arrays}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TargetSpace":
        """The inverse of `to_json`."""
        arrays = {name: np.asarray(fields[name]) for name in ("classes", "mean", "scale")}
        return cls(fields["kind"], flat=fields["flat"], **arrays)


def _as_array(targets: Any) -> Array:
    """Targets as an array; those that are a tensor come from its device."""
    return np.asarray(targets.detach().cpu() if hasattr(targets, "detach") else targets)


def _as_numbers(targets: Array) -> Array:
    """Targets as float64 [n, columns].

    Raises:
        HeadError: If they are no numbers, or not finite.
    """
    try:
        values = targets.astype(np.float64).reshape(len(targets), -1)
    except (TypeError, ValueError):
        raise HeadError(f"targets are numbers here, not {targets.dtype}; for names use classification") from None
    if not np.isfinite(values).all():
        raise HeadError(f"{int((~np.isfinite(values)).sum())} targets are NaN or inf; leave these samples out")
    return values


def hold_out(encoded: Array, kind: Kind, share: float, seed: int) -> tuple[Array, Array]:
    """Sets aside samples for validation: of each class its share, at least one, as long as one is left to learn from.

    Shares are rounded down, as DINOv2's and DINOv3's logistic regressions do.

    Args:
        encoded: Targets as `TargetSpace.encode` returns them.
        kind: Kind of the targets; other than classes are not stratified.
        share: Share of the samples to set aside.
        seed: Which of them.

    Returns:
        Sorted indices of the samples for training and for validation.

    Raises:
        HeadError: If there are too few samples.
    """
    order = np.random.default_rng(seed).permutation(len(encoded))
    groups = encoded[order] if kind == "classification" else np.zeros(len(encoded), int)
    held = []
    for group in np.unique(groups):
        members = order[groups == group]
        held.append(members[: min(max(1, int(share * len(members))), len(members) - 1)])
    validation = np.sort(np.concatenate(held))
    if not len(validation):
        raise HeadError("no class has two samples, so none can be held out; pass validation=(features, targets)")
    return np.setdiff1d(np.arange(len(encoded)), validation, assume_unique=True), validation
