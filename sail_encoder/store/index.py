"""State of all images as the journals have it, a column each, and the tables that a run leaves of it."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from sail_encoder.images.files import ImageFile
from sail_encoder.images.table import STEP, Array, images_at, index_of, key_lists, take
from sail_encoder.io.files import replacing
from sail_encoder.store.records import Record, packs_at_once, read_journals

INDEX, FAILURES = "index.parquet", "failures.csv"

PENDING, DONE, FAILED = range(3)
_STATUS = ("pending", "done", "failed")
_OWN_FILE, _NO_FILE = -1, -2
"""In place of a number of `files`: a file named after the image, and none."""

_STATE = np.dtype(
    [
        ("status", np.int8),
        ("file", np.int32),
        ("row", np.int64),
        ("grid", np.int32, 2),
        ("image", np.int32, 2),
        ("resized", np.int32, 2),
        ("exif", np.int8),
        ("error", np.int32),
        ("size", np.int64),
        ("modified", np.int64),
    ]
)
_UNKNOWN = -1
"""In place of a row or a time that is None."""

LOOKERS = 16
"""Threads that look at files, most of whose time is waiting for a file system."""

_PAIRS = 64
"""Files that a thread looks at in one go."""


def grid_file(key: str) -> str:
    """Path of the file with the grid of an image, below the run's folder."""
    return f"features/{key}.npy"


class ImageStates:
    """State of each image of a list, in 60 bytes, and of images of earlier runs that are no longer listed.

    Args:
        images: The list.
        is_complete: Whether a file is in its final place; rows of one that is not count as pending.
    """

    def __init__(self, images: Sequence[ImageFile], is_complete: Callable[[str], bool]) -> None:
        self.images = images
        self.is_complete = cache(is_complete)
        self.table = np.zeros(len(images), _STATE)
        self.table["exif"], self.table["file"], self.table["row"] = 1, _NO_FILE, _UNKNOWN
        self.files = _Names()
        self.errors = _Names()
        self.others: dict[str, Record] = {}

    @classmethod
    def read(cls, folder: Path, images: Sequence[ImageFile]) -> "ImageStates":
        """From all journals of a folder."""
        states = cls(images, lambda file: (folder / file).exists())
        for packs in packs_at_once(read_journals(folder)):
            states.note([record for pack in packs for record in pack])
        return states

    def note(self, records: Sequence[Record]) -> None:
        """Takes note of what journals say; later records replace earlier ones, unless the image has changed since."""
        usable = [record for record in records if record.row is None or self.is_complete(str(record.file))]
        rows, status = index_of(self.images).rows([record.key for record in usable]), self.table["status"]
        for record, row in zip(usable, rows.tolist(), strict=True):
            if row < 0:
                self.others[record.key] = record
            elif status[row] == PENDING or self._supersedes(record, row):
                self.table[row] = self._state(record)

    def forget(self, keys: Sequence[str]) -> None:
        """Makes images pending again."""
        for key, row in zip(keys, index_of(self.images).rows(keys).tolist(), strict=True):
            self.others.pop(key, None)
            if row >= 0:
                self.table[row] = self._state(Record(key, 0))

    def __len__(self) -> int:
        return len(self.table) + len(self.others)

    def stretches(self) -> "Iterator[tuple[list[str], Array]]":
        """Names and states, some images at a time; those that are not listed come last, in the order of their names."""
        start = 0
        for keys in key_lists(self.images):
            yield keys, self.table[start : start + len(keys)]
            start += len(keys)
        names = iter(sorted(self.others))
        while keys := list(islice(names, STEP)):
            yield keys, np.array([self._state(self.others[key]) for key in keys], _STATE)

    def totals(self, mine: Array) -> dict[str, int]:
        """Counts images of a share, given as bool [images].

        Returns:
            How many of the share are `done`, have `failed` or are still `pending`, and how many are `turned` by an EXIF
            rotation that was not applied; and how many of other shares are `pending_elsewhere`.
        """
        status = self.table["status"]
        counted = {
            "done": (status == DONE) & mine,
            "failed": (status == FAILED) & mine,
            "pending": (status == PENDING) & mine,
            "turned": (self.table["exif"] != 1) & mine,
            "pending_elsewhere": (status == PENDING) & ~mine,
        }
        return {name: int(rows.sum()) for name, rows in counted.items()}

    def _supersedes(self, record: Record, row: int) -> bool:
        earlier = self.table[row]
        modified = _UNKNOWN if record.modified is None else record.modified
        if (earlier["size"], earlier["modified"]) == (record.size, modified):
            return True
        image = self.images[row].with_status()
        then = None if earlier["modified"] == _UNKNOWN else int(earlier["modified"])
        return not Record(record.key, int(earlier["size"]), modified=then).is_of(image) or record.is_of(image)

    def _state(self, record: Record) -> tuple[Any, ...]:
        status, file = PENDING, _NO_FILE
        if record.file is not None:
            status = DONE
            file = _OWN_FILE if record.file == grid_file(record.key) else self.files.number(record.file)
        return (
            status if record.error is None else FAILED,
            file,
            _UNKNOWN if record.row is None else record.row,
            record.grid,
            record.image_size,
            record.resized_size,
            record.exif_orientation,
            0 if record.error is None else self.errors.number(record.error),
            record.size,
            _UNKNOWN if record.modified is None else record.modified,
        )


class _Names:
    """Texts of which there are few, by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]


def list_undone(folder: Path, images: Sequence[ImageFile]) -> Sequence[ImageFile]:
    """The images that index.parquet does not call done or failed."""
    from pyarrow import parquet

    if not (folder / INDEX).exists():
        return images
    settled = np.zeros(len(images), bool)
    table = parquet.ParquetFile(folder / INDEX)
    for batch in table.iter_batches(STEP, columns=["path", "status"]):
        statuses = batch.column("status").to_pylist()
        paths = batch.column("path").to_pylist()
        rows = index_of(images).rows(
            [path for path, status in zip(paths, statuses, strict=True) if status != "pending"]
        )
        settled[rows[rows >= 0]] = True
    return take(images, np.flatnonzero(~settled))


def list_todo(folder: Path, images: Sequence[ImageFile]) -> Sequence[ImageFile]:
    """The images that no journal calls done, or that have changed since; features are not looked at."""
    done = np.zeros(len(images), bool)
    with ThreadPoolExecutor(LOOKERS) as pool:
        for packs in packs_at_once(read_journals(folder)):
            records = [record for pack in packs for record in pack if record.file is not None]
            rows = index_of(images).rows([record.key for record in records])
            pairs = list(zip(records, images_at(images, rows), strict=True))
            steps = (pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS))
            unchanged = np.array(list(chain.from_iterable(pool.map(_are_unchanged, steps))), bool)
            done[rows[rows >= 0]] = unchanged[rows >= 0]
    return take(images, np.flatnonzero(~done)) if done.any() else images


def _are_unchanged(pairs: Sequence[tuple[Record, ImageFile | None]]) -> list[bool]:
    return [image is not None and record.is_of(image) for record, image in pairs]


def write_index(folder: Path, states: ImageStates, work: Path | None = None) -> None:
    """Writes index.parquet, a row per image; a failed image and a pending one have no file."""
    from pyarrow import parquet

    with replacing(folder / INDEX, work) as unfinished, parquet.ParquetWriter(unfinished, _schema()) as writer:
        for keys, table in states.stretches():
            writer.write_table(_rows_of(keys, table, states.files.texts))


def _schema() -> Any:
    import pyarrow

    sizes = [f"{what}_{side}" for what in ("grid", "image", "resized") for side in ("height", "width")]
    return pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("status", pyarrow.string()),
            ("file", pyarrow.string()),
            ("row", pyarrow.int64()),
            *((name, pyarrow.int32()) for name in sizes),
            ("exif_orientation", pyarrow.int8()),
        ]
    )


def _rows_of(keys: Sequence[str], table: Array, files: Sequence[str]) -> Any:
    import pyarrow

    numbers = zip(keys, table["file"].tolist(), strict=True)
    names = [None if n == _NO_FILE else grid_file(key) if n == _OWN_FILE else files[n] for key, n in numbers]
    rows = table["row"]
    columns = [
        pyarrow.array(keys, pyarrow.string()),
        pyarrow.array([_STATUS[number] for number in table["status"].tolist()], pyarrow.string()),
        pyarrow.array(names, pyarrow.string()),
        pyarrow.array(rows, pyarrow.int64(), mask=rows == _UNKNOWN),
        *(pyarrow.array(table[what][:, side]) for what in ("grid", "image", "resized") for side in (0, 1)),
        pyarrow.array(table["exif"]),
    ]
    return pyarrow.table(columns, schema=_schema())


def write_failures(folder: Path, states: ImageStates, work: Path | None = None) -> None:
    """Writes failures.csv, or removes it where nothing has failed."""
    rows = _failures(states)
    first = list(islice(rows, 1))
    if not first:
        (folder / FAILURES).unlink(missing_ok=True)
        return
    with replacing(folder / FAILURES, work) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "reason"), *first])
        csv.writer(file).writerows(rows)


def _failures(states: ImageStates) -> Iterable[tuple[str, str]]:
    for keys, table in states.stretches():
        for place in np.flatnonzero(table["status"] == FAILED).tolist():
            yield keys[place], states.errors.texts[int(table["error"][place])]
