"""Builds probes from what a user names, and fits and measures them on features."""

import difflib
import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import Splits
from evals.errors import DatasetError
from evals.features import ImageFeatures, slug
from evals.metrics import PRIMARY, measure
from evals.results import LayerResult, Result, ResultLog, is_at_edge, make_result
from evals.saved_heads import holds_head_of, save_with_result
from heads.contract import HeadError
from heads.probe import OF_THE_MACHINE, Probe
from heads.registry import get_head
from heads.targets import TargetSpace, Task
from heads.trained import TrainedProbe
from sail_encoder.images.decoding import Array
from sail_encoder.io.fingerprints import digest

ChooseOn = Literal["validation", "test"]

Samples = tuple[Any, Any]
"""Features and targets."""

GIVEN = ("task", "seed", "device")
"""Settings of a probe that the run decides."""

PART_NAMES = ("training", "validation", "test")


def build_probe(
    name: str, settings: Mapping[str, Any], task: Task, seed: int, device: str, choose_on: ChooseOn = "validation"
) -> Probe:
    """A probe from its name and settings.

    Args:
        name: Its name in the registry.
        settings: What is set about it.
        task: What is asked of it.
        seed: What chance depends on.
        device: Where it computes.
        choose_on: Where its hyper-parameter is chosen; what is chosen on the test set is not fitted on it.

    Raises:
        HeadError: If there is no such probe or setting.
    """
    head = get_head(name)
    parameters = inspect.signature(head).parameters
    allowed = [setting for setting in parameters if setting not in GIVEN]
    for setting in settings:
        if setting not in allowed:
            nearest = difflib.get_close_matches(setting, allowed, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"allowed is {', '.join(allowed)}"
            raise HeadError(f"probe '{name}' has no setting '{setting}'; {hint}")
    if choose_on == "test" and "refit" in parameters:
        settings = {**settings, "refit": False}
    probe: Probe = head(**settings, task=task, seed=seed, device=device)
    return probe


def head_task(dataset: LabelledImages) -> Task:
    """Name that heads have for the task; several labels are recognised by the form of the targets."""
    return "regression" if dataset.task == "regression" else "classification"


def check_probes(
    probes: Mapping[str, Mapping[str, Any]],
    dataset: LabelledImages,
    splits: Sequence[Splits],
    device: str,
    choose_on: ChooseOn = "validation",
) -> list[Probe]:
    """Finds what cannot work before any features are extracted.

    Args:
        probes: Names and settings.
        dataset: Samples and targets.
        splits: One a seed.
        device: Where probes compute.
        choose_on: Where hyper-parameters are chosen.

    Returns:
        The probes, not fitted.

    Raises:
        UserError: If there is no such probe or setting, a setting cannot be, or the targets cannot be learned.
    """
    built = [build_probe(name, settings, head_task(dataset), 0, device) for name, settings in probes.items()]
    for one in built:
        one.check()
    for one_split in splits:
        train, val, test = parts_for(one_split, choose_on)
        TargetSpace.of(dataset.targets[train], head_task(dataset))
        if dataset.task == "classification":
            _check_classes(dataset, train, {"validation": val, "test": test})
    return built


def _check_classes(dataset: LabelledImages, train: Array, others: Mapping[str, Array]) -> None:
    """Makes sure that a probe can learn every class that it will be asked for."""
    for name, index in others.items():
        unknown = np.setdiff1d(dataset.targets[index], dataset.targets[train])
        if len(unknown):
            raise DatasetError(
                f"{len(unknown)} classes of the {name} set of {dataset.name} are not in its training set, such as "
                f"'{unknown[0]}'; add images of them to the training set, or leave them out of the {name} set"
            )


def check_stepwise(probe: Probe) -> TrainedProbe:
    """Makes sure that a probe can see augmented images.

    Raises:
        HeadError: If it is not trained by gradient descent.
    """
    if not isinstance(probe, TrainedProbe):
        raise HeadError(f"{probe.kind} cannot see augmented images, since it is not trained step by step; use linear")
    return probe


def decisive_settings(probe: Probe) -> dict[str, Any]:
    """The settings that decide what a probe learns, as text: all but those of the machine."""
    settings = probe.settings()
    return {name: repr(value) for name, value in settings.items() if name not in OF_THE_MACHINE}


def parts_for(splits: Splits, choose_on: ChooseOn) -> tuple[Array, Array, Array]:
    """Parts to fit on, to choose hyper-parameters on, and to report on."""
    if choose_on == "test":
        return np.union1d(splits.train, splits.val), splits.test, splits.test
    return splits.train, splits.val, splits.test


def require_readable(dataset: LabelledImages, name: str, read: Sequence[bool]) -> None:
    """Makes sure that something is left of a part of a set.

    Args:
        dataset: The set.
        name: Name of the part.
        read: For each of its samples whether the image could be read.

    Raises:
        DatasetError: If none could.
    """
    if not any(read):
        raise DatasetError(
            f"none of the {len(read)} images of the {name} set of {dataset.name} can be read; replace them, or take "
            "other images for it"
        )


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
    at_edge = is_at_edge(probe.chosen_, [candidate.value for candidate in probe.path_])
    value, chosen = float(metrics[primary]), float(probe.chosen_)
    return LayerResult(layer, probe.kind, primary, float(validation), value, chosen, at_edge)


class ProbeRun:
    """Runs probes on features of one data set.

    Args:
        log: What is known already, and where results are kept.
        out: Folder for the heads.
        dataset: Samples and targets.
        choose_on: Where hyper-parameters are chosen.
        device: Where probes compute.
    """

    def __init__(self, log: ResultLog, out: Path, dataset: LabelledImages, choose_on: ChooseOn, device: str) -> None:
        self.log = log
        self.out = out
        self.dataset = dataset
        self.choose_on = choose_on
        self.device = device
        self._contents = digest([dataset.name, dataset.keys, dataset.targets.tolist()])

    def run(self, name: str, settings: dict[str, Any], features: ImageFeatures, splits: Splits, seed: int) -> Result:
        """Fits one probe and measures it, or gives the result of an earlier run whose head is still there.

        Raises:
            UserError: If the probe cannot be fitted on these.
        """
        probe = build_probe(name, settings, head_task(self.dataset), seed, self.device, self.choose_on)
        key = self._key(probe, features, splits)
        head = self.out / "heads" / slug(features.title) / f"{probe.kind}-seed{seed}"
        if key not in self.log.known or not holds_head_of(head, key):
            result = self._fit(probe, features, splits, seed)
            save_with_result(head, probe, features.source(probe.takes), key)
            self.log.add(key, result)
        return self.log.known[key]

    def _fit(self, probe: Probe, features: ImageFeatures, splits: Splits, seed: int) -> Result:
        started = time.perf_counter()
        indices = parts_for(splits, self.choose_on)
        for name, index in zip(PART_NAMES, indices, strict=True):
            require_readable(self.dataset, name, [features.has(self.dataset.keys[row]) for row in index])
        train, val, test = (self._samples(probe, features, index) for index in indices)
        probe.fit(*train, validation=val)
        result = make_result(probe, features.title, seed, probe.scores(test[0]), test[1], started)
        return replace(result, left_out=sum(not features.has(key) for key in self.dataset.keys))

    def _samples(self, probe: Probe, features: ImageFeatures, index: Array) -> Samples:
        """Features and targets of samples; those whose image could not be read are left out."""
        rows = [row for row in index if features.has(self.dataset.keys[row])]
        keys = [self.dataset.keys[row] for row in rows]
        return (features.grids if probe.takes == "grids" else features.vectors)(keys), self.dataset.targets[rows]

    def _key(self, probe: Probe, features: ImageFeatures, splits: Splits) -> str:
        """Names all that decides a result."""
        return digest(
            [
                self._contents,
                [index.tolist() for index in (splits.train, splits.val, splits.test)],
                [row for row, key in enumerate(self.dataset.keys) if not features.has(key)],
                probe.kind,
                decisive_settings(probe),
                [features.title, features.folder.settings, asdict(features.source(probe.takes))],
                self.choose_on,
            ]
        )
