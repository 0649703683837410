"""The journal of a run: what is known of each image, appended a pack at a time once its files are complete."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one image.

    Attributes:
        key: Its name, see `ImageFile`.
        size: Bytes of the encoded image, by which a changed file is noticed.
        grid: (nh, nw).
        image_size: (height, width) of the original.
        resized_size: (height, width) of what the model saw.
        exif_orientation: The EXIF orientation that was found and not applied.
        file: Where its features are, below the run's folder; None if it failed.
        file_bytes: Size of that file, where it is the image's own.
        row: Its row in a shard; None for a file of its own.
        shape: Shape of its features.
        error: Why it failed.
    """

    key: str
    size: int
    grid: Pair = (0, 0)
    image_size: Pair = (0, 0)
    resized_size: Pair = (0, 0)
    exif_orientation: int = 1
    file: str | None = None
    file_bytes: int = 0
    row: int | None = None
    shape: tuple[int, ...] = ()
    error: str | None = None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Record":
        """From a line of the journal."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


def read_journals(folder: Path) -> Iterator[list[Record]]:
    """The packs in all journals of a folder, also of runs that are still writing."""
    for path in sorted(folder.glob("journal*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield [Record.of(fields) for fields in json.loads(line)]
