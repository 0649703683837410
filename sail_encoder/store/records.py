"""The journal of a run: what is known of each image, appended a pack at a time once its files are complete."""

import json
import re
import reprlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from sail_encoder.images.files import ImageFile
from sail_encoder.io.files import open_regular
from sail_encoder.io.json_lines import DAMAGE, read_lines

Pair = tuple[int, int]

_PACKS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Record:
    """Record of one image.

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
    def of(cls, values: dict[str, Any]) -> "Record":
        """From a line of the journal.

        Raises:
            TypeError: If a value has another type than it should.
        """
        for name, value in values.items():
            if not isinstance(value, _KINDS[name]):
                raise TypeError(f"{name} is {reprlib.repr(value)}")
            if isinstance(value, int) and not _LOWEST.get(name, -_HIGHEST) <= value <= _LARGEST.get(name, _HIGHEST):
                raise TypeError(f"{name} is {value}")
            if isinstance(value, list):
                are_sizes = all(isinstance(size, int) and 0 <= size <= _LARGEST_SIDE for size in value)
                if not are_sizes or _LENGTHS[name] not in (None, len(value)):
                    raise TypeError(f"{reprlib.repr(value)} are no sizes")
                values[name] = tuple(value)
        record = cls(**values)
        if record.file is not None and not is_below(record.file):
            raise TypeError(f"file is {record.file!r}")
        if record.file is None and record.row is not None:
            raise TypeError(f"row is {record.row} of no file")
        return record

    @property
    def values(self) -> dict[str, Any]:
        """The line of the journal."""
        return {name: getattr(self, name) for name in _KINDS}

    def is_of(self, image: ImageFile) -> bool:
        """Tells whether the image has not changed since, as far as both are known."""
        status = image.with_status()
        unchanged = None in (self.modified, status.modified) or self.modified == status.modified
        return unchanged and self.size == status.size


_OPTIONAL_INT, _OPTIONAL_TEXT = (int, type(None)), (str, type(None))
_KINDS: dict[str, Any] = {
    "key": str,
    "size": int,
    "grid": list,
    "image_size": list,
    "resized_size": list,
    "exif_orientation": int,
    "file": _OPTIONAL_TEXT,
    "file_bytes": int,
    "row": _OPTIONAL_INT,
    "shape": list,
    "error": _OPTIONAL_TEXT,
    "modified": _OPTIONAL_INT,
}
_LENGTHS = {"grid": 2, "image_size": 2, "resized_size": 2, "shape": None}
assert list(_KINDS) == [field.name for field in fields(Record)]


_LOWEST, _LARGEST = {"row": 0}, {"exif_orientation": 2**7 - 1}
_LARGEST_SIDE, _HIGHEST = 2**31 - 1, 2**63 - 1
"""What the columns of index.parquet hold."""


def is_below(file: str) -> bool:
    """Tells whether a relative path stays below the folder it is joined to."""
    return not any(part in ("", ".", "..") for part in file.split("/")) and "\0" not in file


def list_journals(folder: Path) -> list[Path]:
    """Journals of all shares, the one that was written last at the end."""
    paths = (path for path in folder.glob("journal*.jsonl") if re.fullmatch(r"journal(_\d+_of_\d+)?\.jsonl", path.name))
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_journals(folder: Path) -> Iterator[list[Record]]:
    """The packs in all journals of a folder, also of runs that are still writing.

    Raises:
        StoreError: If a line is damaged, or of another program.
    """
    for path in list_journals(folder):
        yield from read_journal(path)


def read_journal(path: Path, start: int = 0) -> Iterator[list[Record]]:
    """The packs in one journal, from a byte on at which a line begins.

    Raises:
        StoreError: If a line is damaged, or of another program.
    """
    return read_lines(path, _pack, "use another --out or --overwrite true", start)


def packs_at_once(packs: Iterator[list[Record]]) -> Iterator[list[list[Record]]]:
    """Several packs at a time."""
    while some := list(islice(packs, _PACKS_AT_ONCE)):
        yield some


def read_names(folder: Path) -> Iterator[str]:
    """Files that the journals of a folder name, also where other lines of them are damaged."""
    for path in list_journals(folder):
        with open_regular(path) as lines:
            for line in lines:
                with suppress(*DAMAGE):
                    yield from [record.file for record in _pack(json.loads(line)) if record.file is not None]


def _pack(values: Any) -> list[Record]:
    return [Record.of(fields) for fields in values]
