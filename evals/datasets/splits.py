"""Deterministic splits: which sample is for training, for validation, for testing."""

import sys
from dataclasses import dataclass

import numpy as np

from evals.datasets.labelled import LabelledImages
from evals.errors import DatasetError
from sail_encoder.images.decoding import Array
from sail_encoder.io.fingerprints import digest


@dataclass(frozen=True, eq=False)
class Splits:
    """Sorted indices of samples.

    Attributes:
        train: For fitting.
        val: For choosing hyper-parameters.
        test: For reporting.
        shared: Images that are in the test set and in one of the others too.
    """

    train: Array
    val: Array
    test: Array
    shared: int


def split(dataset: LabelledImages, val_share: float = 0.1, test_share: float = 0.2, seed: int = 0) -> Splits:
    """Splits a data set.

    Parts that the set names stay as they are; a set with only training and validation images is tested on the
    latter, as is the custom for ImageNet. What is missing is set aside: of each class the same share, rounded down and
    at least one image, chosen by a hash of the image's key, so that neither order nor number of other images matters.
    The seed decides what is set aside for validation; the test set is always the same.

    Args:
        dataset: The data set.
        val_share: Share of the training set to set aside for validation, where the set has no such part.
        test_share: Share to set aside for testing, likewise.
        seed: Which images are set aside for validation.

    Raises:
        DatasetError: If a share is not possible, or a part is left empty.
    """
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 < share < 1:
            raise DatasetError(f"{name} is {share}; allowed is between 0 and 1")
    parts = np.array(dataset.parts)
    train, val, test = (np.flatnonzero(parts == part) for part in ("train", "val", "test"))
    if not len(test):
        test, val = val, test
    train = np.union1d(train, np.flatnonzero(parts == ""))
    if not len(test):
        train, test = _set_aside(dataset, train, test_share, "test")
    if not len(val):
        train, val = _set_aside(dataset, train, val_share, f"val {seed}")
    for name, index in (("training", train), ("validation", val), ("test", test)):
        if not len(index):
            raise DatasetError(
                f"the {name} set of {dataset.name} is empty; {len(dataset)} samples are too few to split"
            )
    seen = {dataset.keys[row] for row in (*train, *val)}
    shared = len({dataset.keys[row] for row in test} & seen)
    return Splits(train, val, test, shared)


def split_each_seed(dataset: LabelledImages, val_share: float, test_share: float, seeds: int) -> list[Splits]:
    """The splits of each seed; warns on stderr where images are on both sides.

    Raises:
        DatasetError: If there is no seed, or the set cannot be split.
    """
    if seeds < 1:
        raise DatasetError(f"seeds is {seeds}; give 1 or more")
    splits = [split(dataset, val_share, test_share, seed) for seed in range(seeds)]
    if splits[0].shared:
        print(
            f"warning: {splits[0].shared:,} images of the test set are in the training or validation set too; "
            "the results are too good",
            file=sys.stderr,
        )
    return splits


def _set_aside(dataset: LabelledImages, index: Array, share: float, salt: str) -> tuple[Array, Array]:
    """Sorted indices of what stays and what is set aside; equal images go the same way."""
    groups: dict[str, list[int]] = {}
    for row in index:
        group = str(dataset.targets[row]) if dataset.task == "classification" else ""
        groups.setdefault(group, []).append(int(row))
    aside: list[int] = []
    for members in groups.values():
        ranks = {key: digest(f"{salt}/{key}", 64) for key in {dataset.keys[m] for m in members}}
        chosen = sorted(ranks, key=ranks.__getitem__)
        chosen = chosen[: min(max(1, int(share * len(chosen))), len(chosen) - 1)]
        kept = set(chosen)
        aside += [member for member in members if dataset.keys[member] in kept]
    away = np.array(sorted(aside), dtype=np.int64)
    return np.setdiff1d(index, away), away
