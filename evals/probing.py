"""Fits probes on features, measures them, and keeps each result, so that a run that was stopped goes on."""

import difflib
import hashlib
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from sklearn.metrics import confusion_matrix

from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import Splits
from evals.features import ImageFeatures, require_grids, slug
from evals.metrics import PRIMARY, measure
from heads.contract import HeadError
from heads.probe import Probe
from heads.registry import get_head
from heads.targets import TargetSpace, Task
from sail_encoder.pixels import Array
from sail_encoder.store.line_log import LineLog

ChooseOn = Literal["validation", "test"]

Samples = tuple[Any, Any]
"""Features and targets."""

GIVEN = ("task", "seed", "device")
"""Settings of a probe that the run decides."""


@dataclass(frozen=True)
class Result:
    """What one probe has reached on one set of features with one seed.

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


@dataclass(frozen=True)
class LayerResult:
    """What one probe has reached on one layer.

    Attributes:
        layer: Index of the block.
        probe: Name of the probe.
        primary: Name of the metric that counts.
        validation: Quality on the validation set, by which the layer is chosen.
        value: The metric that counts, on the test set.
        chosen: The hyper-parameter that was chosen.
    """

    layer: int
    probe: str
    primary: str
    validation: float
    value: float
    chosen: float


def probe_layer(probe: Probe, layer: int, train: Samples, val: Samples, test: Samples) -> LayerResult:
    """Fits a probe on the vectors of one layer and measures it.

    Args:
        probe: Not fitted yet.
        layer: Index of the block.
        train: Vectors and targets to fit on.
        val: Likewise, to choose the hyper-parameter on.
        test: Likewise, to measure on.
    """
    probe.fit(*train, validation=val)
    metrics = measure(probe, probe.scores(test[0]), test[1])
    primary = PRIMARY[probe.targets_.kind]
    validation = max(candidate.quality for candidate in probe.path_ if candidate.quality is not None)
    return LayerResult(layer, probe.kind, primary, float(validation), float(metrics[primary]), float(probe.chosen_))


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


def build_probe(name: str, settings: Mapping[str, Any], task: Task, seed: int, device: str) -> Probe:
    """A probe from its name and settings.

    Raises:
        HeadError: If there is no such probe or setting.
    """
    head = get_head(name)
    allowed = [setting for setting in inspect.signature(head).parameters if setting not in GIVEN]
    for setting in settings:
        if setting not in allowed:
            nearest = difflib.get_close_matches(setting, allowed, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"allowed is {', '.join(allowed)}"
            raise HeadError(f"probe '{name}' has no setting '{setting}'; {hint}")
    probe: Probe = head(**settings, task=task, seed=seed, device=device)
    return probe


def parse_probes(probes: str | Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Names and settings of probes, from names separated by commas or from a mapping.

    Raises:
        HeadError: If there is none.
    """
    if isinstance(probes, str):
        probes = {name.strip(): None for name in probes.split(",") if name.strip()}
    if not probes:
        raise HeadError("no probe was named; give some as --probes knn,logistic")
    return {name: dict(settings or {}) for name, settings in probes.items()}


def head_task(dataset: LabelledImages) -> Task:
    """What a head calls the task; several labels are told by the form of the targets."""
    return "regression" if dataset.task == "regression" else "classification"


def check_probes(
    probes: Mapping[str, Mapping[str, Any]], dataset: LabelledImages, splits: Sequence[Splits], device: str
) -> bool:
    """Finds what cannot work before any features are extracted.

    Returns:
        Whether a probe needs grids.

    Raises:
        HeadError: If there is no such probe or setting, or the targets cannot be learned.
    """
    built = [build_probe(name, settings, head_task(dataset), 0, device) for name, settings in probes.items()]
    for one in splits:
        TargetSpace.of(dataset.targets[one.train], head_task(dataset))
    return any(probe.takes == "grids" for probe in built)


def parts_for(splits: Splits, choose_on: ChooseOn) -> tuple[Array, Array, Array]:
    """What is fitted on, what hyper-parameters are chosen on, and what is reported."""
    if choose_on == "test":
        return np.union1d(splits.train, splits.val), splits.test, splits.test
    return splits.train, splits.val, splits.test


class ProbeRun:
    """Runs probes on features of one data set.

    Args:
        out: Folder of the run.
        dataset: Samples and targets.
        choose_on: Where hyper-parameters are chosen.
        device: Where probes compute.
    """

    def __init__(self, out: Path, dataset: LabelledImages, choose_on: ChooseOn, device: str) -> None:
        self.out = out
        self.dataset = dataset
        self.choose_on = choose_on
        self.device = device
        out.mkdir(parents=True, exist_ok=True)
        self.log = LineLog(out / "results.jsonl")
        self.known = {line["key"]: _result(line["result"]) for line in self.log.read()}
        self._contents = _digest([dataset.name, dataset.keys, dataset.targets.tolist()])

    def __enter__(self) -> "ProbeRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()

    def run(self, name: str, settings: dict[str, Any], features: ImageFeatures, splits: Splits, seed: int) -> Result:
        """Fits one probe and measures it, or gives the result of an earlier run of the same.

        Raises:
            UserError: If the probe cannot be fitted on these.
        """
        probe = build_probe(name, settings, head_task(self.dataset), seed, self.device)
        if probe.takes == "grids":
            require_grids(features, name)
        key = self._key(probe, features, splits)
        if key not in self.known:
            result = self._fit(probe, features, splits, seed)
            self.log.append({"key": key, "result": asdict(result)})
            self.known[key] = result
        return self.known[key]

    def _fit(self, probe: Probe, features: ImageFeatures, splits: Splits, seed: int) -> Result:
        started = time.perf_counter()
        if self.choose_on == "test" and hasattr(probe, "refit"):
            probe.refit = False  # what is chosen on the test set must not be fitted on it
        indices = parts_for(splits, self.choose_on)
        train, val, test = (self._samples(probe, features, index) for index in indices)
        probe.fit(*train, validation=val)
        result = make_result(probe, features.title, seed, probe.scores(test[0]), test[1], started)
        probe.save(self.out / "heads" / slug(features.title) / f"{probe.kind}-seed{seed}", features.source(probe.takes))
        return replace(result, left_out=sum(not features.has(key) for key in self.dataset.keys))

    def _samples(self, probe: Probe, features: ImageFeatures, index: Array) -> Samples:
        """Features and targets of samples; those whose image could not be read are left out."""
        places = [place for place in index if features.has(self.dataset.keys[place])]
        keys = [self.dataset.keys[place] for place in places]
        return (features.grids if probe.takes == "grids" else features.vectors)(keys), self.dataset.targets[places]

    def _key(self, probe: Probe, features: ImageFeatures, splits: Splits) -> str:
        """Names all that decides a result."""
        return _digest(
            [
                self._contents,
                [index.tolist() for index in (splits.train, splits.val, splits.test)],
                [place for place, key in enumerate(self.dataset.keys) if not features.has(key)],
                probe.kind,
                {name: repr(value) for name, value in probe.settings().items()},
                [features.title, asdict(features.source(probe.takes))],
                self.choose_on,
            ]
        )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _result(fields: dict[str, Any]) -> Result:
    return Result(**{**fields, "path": [(value, quality) for value, quality in fields["path"]]})
