"""Labelled images, and the kinds of targets that they may have."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images.decoding import Array
from sail_encoder.images.sources import ImageFile, ImageList

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, splits and shards that say which part of a set an image belongs to."""

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target")
"""Names under which JSON and the columns of a data set may hold the label, in order of preference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeImage(ImageFile):
    """An image that is in no file of its own.

    Attributes:
        make: Gives the bytes of the encoded image.
    """

    make: Callable[[], bytes]

    def open(self) -> bytes:
        return self.make()


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A data set. The same image may occur in it more than once.

    Attributes:
        name: For reports.
        images: Every image once.
        keys: For each sample the key of its image.
        targets: For each sample its class [n], zeros and ones [n, labels], or numbers [n] or [n, outputs].
        parts: For each sample `train`, `val`, `test`, or an empty string where the set does not say.
        task: Kind of the targets.
        labels: Names of the columns of `targets`, where there are several labels.
    """

    name: str
    images: ImageList
    keys: list[str]
    targets: Array
    parts: list[str]
    task: Kind = "classification"
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


_PART_NAME = re.compile(rf"({'|'.join(sorted(PARTS, key=len, reverse=True))})([-_. ]?(set|split|data|images|\d+))*")
"""Also `train2017`, `val_set` and the like, but not `valley`."""


def part_of(name: str) -> str:
    """Part of a set that a folder's name says, an empty string for none."""
    match = _PART_NAME.fullmatch(name.lower())
    return PARTS[match[1]] if match else ""


def parts_and_classes(keys: Sequence[str], instead: str) -> list[tuple[str, str]]:
    """The part and the class of images that lie in folders named after their classes.

    Args:
        keys: `[part/]class/.../name` each.
        instead: What else can tell the classes, for the message.

    Raises:
        DatasetError: If an image is in no such folder, or folders look like parts but are not named so.
    """
    pairs = [part_and_class(key, instead) for key in keys]
    inside: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        first, *others = key.split("/")[:-1]
        inside[first] |= set(others[:1])
    _check_parts(inside)
    return pairs


def _check_parts(inside: Mapping[str, set[str]]) -> None:
    """Looks for parts that would be taken for classes, by the names of the first folders and of those inside them."""
    parts = sorted(name for name in inside if part_of(name))
    others = sorted(name for name in inside if not part_of(name))
    what_next = "name parts like train, val and test, or give a table of paths and labels"
    if parts and others:
        raise DatasetError(f"'{parts[0]}' is a part of the set, but '{others[0]}' beside it is none; {what_next}")
    if len(others) > 1 and len(inside[others[0]]) > 1 and all(inside[name] == inside[others[0]] for name in others):
        same = ", ".join(sorted(inside[others[0]])[:3])
        raise DatasetError(
            f"'{others[0]}' and '{others[1]}' have the same folders inside ({same}), so they may be parts of the set "
            f"and not classes; {what_next}"
        )


def part_and_class(key: str, instead: str) -> tuple[str, str]:
    """The part and the class of an image that lies in a folder named after its class.

    Args:
        key: `[part/]class/.../name`.
        instead: What else can tell the classes, for the message.

    Raises:
        DatasetError: If the image is in no such folder.
    """
    folders = key.split("/")[:-1]
    part = part_of(folders[0]) if folders else ""
    if part:
        folders = folders[1:]
    if not folders:
        raise DatasetError(
            f"'{key}' is in no folder that names its class; use class/name or train/class/name, or {instead}"
        )
    return part, folders[0]


def parse_targets(values: Sequence[Any], task: Kind) -> tuple[Array, list[str]]:
    """Targets from what is written in a table.

    Args:
        values: One cell a sample, or a list of cells where there are several columns of numbers.
        task: `classification` keeps names; `multilabel` splits at `|`; `regression` reads numbers.

    Returns:
        The targets, and the names of the labels where there are several.

    Raises:
        DatasetError: If a label is missing, or is no number where numbers are needed.
    """
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing and task != "multilabel":
        raise DatasetError(f"{len(missing)} of {len(values)} labels are missing, the first in row {missing[0] + 1}")
    if task == "classification":
        return np.array([str(value) for value in values]), []
    if task == "regression":
        return np.array([_numbers(value) for value in values]), []
    sets = [set() if _is_missing(value) else _label_set(value) for value in values]
    labels = sorted(set().union(*sets))
    if not labels:
        raise DatasetError("no sample has a label; write several labels of one image as cat|dog")
    return np.array([[label in one for label in labels] for one in sets]).astype(int), labels


def _is_missing(value: Any) -> bool:
    cells = value if isinstance(value, (list, tuple)) else [value]
    return any(cell is None or cell == "" or cell != cell for cell in cells)


def _label_set(value: Any) -> set[str]:
    cells = value if isinstance(value, (list, tuple)) else str(value).split("|")
    return {str(cell).strip() for cell in cells}


def _numbers(value: Any) -> Any:
    try:
        return [float(cell) for cell in value] if isinstance(value, (list, tuple)) else float(value)
    except (TypeError, ValueError):
        raise DatasetError(
            f"'{value}' is not a number, but the task is regression; use --task classification"
        ) from None
