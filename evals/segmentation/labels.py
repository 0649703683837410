"""From the ids in a mask to the classes that a head learns, and to the colors that people see."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from evals.errors import DatasetError
from heads.dense import IGNORE
from sail_encoder.images.decoding import Array
from sail_encoder.io.files import read_text

INVALID = -1
"""What an id becomes that the class map does not know."""

HIGHEST_ID = 255
"""In masks of 8 bits."""


@dataclass(frozen=True)
class ClassMap:
    """Which class each id in a mask stands for.

    Attributes:
        ids: The name of the class of each known id, None where its pixels do not count. Several ids may share a name.
    """

    ids: Mapping[int, str | None]

    def __post_init__(self) -> None:
        if len(self.names) > IGNORE:
            raise DatasetError(
                f"{len(self.names)} classes are too many; allowed are {IGNORE}, because masks have 8 bits"
            )

    @classmethod
    def of(cls, names: Sequence[str], first_id: int = 0, ignored: Sequence[int] = (IGNORE,)) -> "ClassMap":
        """Consecutive ids. `first_id=1` with 0 among the ignored is what others call "reduce zero label".

        Raises:
            DatasetError: If there are more names than ids.
        """
        last_id = HIGHEST_ID - (HIGHEST_ID in ignored)
        if first_id + len(names) > last_id + 1:
            raise DatasetError(
                f"{len(names)} classes are too many; their ids would run from {first_id} on, and {last_id} is the "
                "highest that can be a class; join some with --class_map"
            )
        ids: dict[int, str | None] = {first_id + index: name for index, name in enumerate(names)}
        return cls(ids | dict.fromkeys(ignored))

    @classmethod
    def read(cls, path: str | Path) -> "ClassMap":
        """Reads a class map: JSON with the name of each id, or null where its pixels do not count.

        Raises:
            DatasetError: If the file is something else.
        """
        try:
            raw = json.loads(read_text(path))
            ids = {int(key): name for key, name in raw.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise DatasetError(
                f'{path} is no class map ({error}); write {{"0": null, "1": "road", "2": "car"}}'
            ) from None
        wrong = [
            f"{key}: {name}"
            for key, name in ids.items()
            if not (0 <= key <= HIGHEST_ID and isinstance(name, str | None))
        ]
        if wrong:
            raise DatasetError(f"{path} maps {wrong[0]}; ids run from 0 to {HIGHEST_ID}, and names are text or null")
        if not any(name is not None for name in ids.values()):
            raise DatasetError(f'{path} names no class; write {{"0": null, "1": "road", "2": "car"}}')
        return cls(ids)

    @cached_property
    def names(self) -> list[str]:
        """The classes, in the order of the ids that first name them."""
        return list(dict.fromkeys(name for _, name in sorted(self.ids.items()) if name is not None))

    @cached_property
    def table(self) -> Array:
        """int16 [256]: for each id its class, `IGNORE` or `INVALID`."""
        table = np.full(HIGHEST_ID + 1, INVALID, np.int16)
        for key, name in self.ids.items():
            table[key] = IGNORE if name is None else self.names.index(name)
        return table


def palette(names: Sequence[str]) -> Array:
    """A color for each class, uint8 [classes, 3]: the color map of the Pascal VOC development kit.

    That map begins with black, which is kept for a class called background.
    """
    shift = 0 if names and names[0] == "background" else 1
    index = np.arange(len(names)) + shift
    colors = np.zeros((len(names), 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, empty ones left out.

    Raises:
        DatasetError: If it cannot be read as text.
    """
    try:
        lines = read_text(path, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error}); save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]
