"""Results of probes, and the log that keeps each of them, so that a run that was stopped goes on."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from sklearn.metrics import confusion_matrix

from evals.metrics import PRIMARY, measure
from heads.probe import Probe
from sail_encoder.images.decoding import Array
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.typed import require_fields


@dataclass(frozen=True)
class Result:
    """Result of one probe on one set of features with one seed.

    Attributes:
        features: Name of the features.
        probe: Name of the probe.
        seed: Of the split and of the training.
        primary: Name of the metric that counts.
        metrics: All metrics of the test set.
        parameter: Name of the hyper-parameter.
        chosen: The value that was chosen.
        path: Quality on the validation set of every value, as (value, quality) pairs.
        confusion: For classes [true][predicted], counts.
        classes: Names of the classes.
        left_out: Samples whose image could not be read.
        seconds: Time to fit and measure.
    """

    features: str
    probe: str
    seed: int
    primary: str
    metrics: dict[str, float]
    parameter: str
    chosen: float
    path: list[tuple[float, float | None]]
    confusion: list[list[int]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    left_out: int = 0
    seconds: float = 0.0

    @property
    def at_edge(self) -> bool:
        """Whether the value that was chosen is the lowest or the highest that was tried."""
        return is_at_edge(self.chosen, [value for value, _ in self.path])

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Result":
        """From what JSON has made of it.

        Raises:
            TypeError: If a field is missing, or has another type.
        """
        result = cls(**require_fields(fields, cls))
        return replace(result, path=[(value, quality) for value, quality in result.path])


@dataclass(frozen=True)
class LayerResult:
    """Result of one probe on one layer.

    Attributes:
        layer: Index of the block.
        probe: Name of the probe.
        primary: Name of the metric that counts.
        validation: Quality on the validation set, by which the layer is chosen.
        value: The metric that counts, on the test set.
        chosen: The hyper-parameter that was chosen.
        at_edge: Whether it is the lowest or the highest that was tried.
    """

    layer: int
    probe: str
    primary: str
    validation: float
    value: float
    chosen: float
    at_edge: bool = False


def is_at_edge(chosen: float, tried: Sequence[float]) -> bool:
    """Whether a value is the lowest or the highest of a grid of several."""
    return len(set(tried)) > 1 and chosen in (min(tried), max(tried))


def make_result(probe: Probe, title: str, seed: int, scores: Array, truth: Array, started: float) -> Result:
    """Measures a fitted probe.

    Args:
        probe: The probe.
        title: Name of the features.
        seed: Of the run.
        scores: [n, outputs] of the test set.
        truth: Targets of the test set.
        started: When fitting began, by `time.perf_counter`.
    """
    kind, classes, confusion = probe.targets_.kind, [], []
    if kind == "classification":
        classes = [str(name) for name in probe.targets_.classes]
        confusion = confusion_matrix(truth, probe.decide(scores), labels=probe.targets_.classes).tolist()
    metrics = {name: float(value) for name, value in measure(probe, scores, truth).items()}
    return Result(
        features=title,
        probe=probe.kind,
        seed=seed,
        primary=PRIMARY[kind],
        metrics=metrics,
        parameter=probe.path_[0].name,
        chosen=float(probe.chosen_),
        path=[(float(candidate.value), candidate.quality) for candidate in probe.path_],
        confusion=confusion,
        classes=classes,
        seconds=round(time.perf_counter() - started, 2),
    )


def best_layers(results: Sequence[LayerResult]) -> dict[str, LayerResult]:
    """For each probe its result at the layer that is best on the validation set, the first of several."""
    best: dict[str, LayerResult] = {}
    for one in results:
        if one.probe not in best or one.validation > best[one.probe].validation:
            best[one.probe] = one
    return best


class ResultLog:
    """The results of a run, a line each in results.jsonl, under keys that name all that decides them.

    Args:
        out: Folder of the run; made if need be.

    Attributes:
        known: The results so far, by key.

    Raises:
        StoreError: If another run is writing there, or a line is damaged.
    """

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        remedy = "delete the line, and its probe is fitted again"
        self._lines = LineLog(out / "results.jsonl", _entry, remedy)
        self.known: dict[str, Result] = dict(self._lines.read())

    def add(self, key: str, result: Result) -> None:
        """Keeps a result."""
        self._lines.append({"key": key, "result": asdict(result)})
        self.known[key] = result

    def __enter__(self) -> "ResultLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()


def _entry(line: Any) -> tuple[str, Result]:
    """Key and result that a line of the log holds."""
    entry = require_fields(line, {"key": str})
    return entry["key"], Result.of(entry["result"])
