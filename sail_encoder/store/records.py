"""The journal of a run: what is known of each image, appended a pack at a time once its files are complete."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import StoreError

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one image.

    Attributes:
        key: Its name, see `ImageFile`.
        size: Bytes of the encoded image.
        modified: When its file was last written; by this and `size` a changed image is noticed. None if unknown, as in
            journals of earlier versions.
        grid: (nh, nw).
        image_size: (height, width) of the original.
        resized_size: (height, width) of what the model saw.
        exif_orientation: The EXIF orientation that was found and not applied.
        file: Where its features are, below the run's folder; None if it has none.
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
    modified: int | None = None

    @classmethod
    def begin(cls, image: ImageFile) -> "Record":
        """Of an image that is still to be done."""
        status = image.with_status()
        return cls(image.key, status.size or 0, modified=status.modified)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Record":
        """From a line of the journal."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    @property
    def status(self) -> Literal["done", "failed", "pending"]:
        """How far the image has come."""
        if self.error is not None:
            return "failed"
        return "pending" if self.file is None else "done"

    def is_of(self, image: ImageFile) -> bool:
        """Whether the image has not changed since, as far as both are known."""
        status = image.with_status()
        unchanged = None in (self.modified, status.modified) or self.modified == status.modified
        return unchanged and self.size == status.size


def list_journals(folder: Path) -> list[Path]:
    """The journals of all shards, the one that was written last behind the others."""
    paths = (path for path in folder.glob("journal*.jsonl") if re.fullmatch(r"journal(_\d+_of_\d+)?\.jsonl", path.name))
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_journals(folder: Path) -> Iterator[list[Record]]:
    """The packs in all journals of a folder, also of runs that are still writing.

    Raises:
        StoreError: If a line is damaged, or of another program.
    """
    for path in list_journals(folder):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    yield _parse(line, f"{path} line {number}")


def _parse(line: bytes, where: str) -> list[Record]:
    try:
        return [Record.of(fields) for fields in json.loads(line)]
    except (ValueError, TypeError, AttributeError):
        raise StoreError(f"{where} is damaged, or of another program; use another --out or --overwrite true") from None
