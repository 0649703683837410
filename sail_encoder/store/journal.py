"""The journal of a run: what is known of each image, appended a pack at a time once its files are complete."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sail_encoder.errors import StoreError
from sail_encoder.store.locking import lock

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


class Journal:
    """Appends packs of records to a file that only one process may write.

    Args:
        path: The file; a line that a kill cut off at its end is dropped.

    Raises:
        StoreError: If another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab+")
        if not lock(self.file, wait=False):
            raise StoreError(f"another run is writing {path}; wait for it, or use another --out or --shard")
        self._drop_partial_line()

    def _drop_partial_line(self) -> None:
        end = self.file.seek(0, os.SEEK_END)
        while end and self._byte_before(end) != b"\n":
            end -= 1
        self.file.truncate(end)

    def _byte_before(self, position: int) -> bytes:
        self.file.seek(position - 1)
        return self.file.read(1)

    def append(self, records: Sequence[Record]) -> None:
        """Writes one line, in one system call."""
        line = json.dumps([asdict(record) for record in records], ensure_ascii=False, separators=(",", ":"))
        self.file.write(line.encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        """Ends the run's claim on the file."""
        self.file.close()


def read_journals(folder: Path) -> Iterator[list[Record]]:
    """The packs in all journals of a folder, also of runs that are still writing."""
    for path in sorted(folder.glob("journal*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield [Record.of(fields) for fields in json.loads(line)]
