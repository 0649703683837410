"""The two shapes in which features are stored: a file per image, or shards with a row per image.

Only files that the journals name are ever replaced; what another program has left stays as it is.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib import format as npy_format

from sail_encoder.images.table import Array
from sail_encoder.io.errors import StoreError
from sail_encoder.io.files import append_all, make_folders, read_json
from sail_encoder.store.index import grid_file
from sail_encoder.store.npy import map_array
from sail_encoder.store.records import Record, read_names

SHARD_BYTES = 2**28
"""Size at which a shard of pooled features is complete."""

WRITERS = 4

_REFUSED_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ)
"""Refusals that concern the name of one image, where a full disk concerns all."""


class Sink(Protocol):
    """Destination of the arrays of a run."""

    def write(self, records: Sequence[Record], arrays: Sequence[Array]) -> list[Record]:
        """Stores one array a record, and returns the records with their places."""

    def is_intact(self, record: Record) -> bool:
        """Tells whether what a record points to is there."""

    def settle(self) -> None:
        """Called when the records of the last write are in the journal."""

    def complete(self) -> None:
        """Brings everything into its final place."""

    def close(self) -> None:
        """Lets go of threads and files; what is not complete stays where it is."""


class FileSink:
    """`features/<key>.npy`, one file per image.

    Before the files of a pack are put into their places, `placing.json` among the unfinished ones names them, so that
    what a kill leaves between that and the journal is known to be ours.

    Args:
        folder: The folder of the run.
        work: A folder for unfinished files, on the same file system.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self.work = work
        self.writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self.known_folders: set[str] = set()
        self.placing: set[str] = set()
        self.unjournaled = read_placing(work)

    def write(self, records: Sequence[Record], arrays: Sequence[Array]) -> list[Record]:
        if not records:
            return []
        self.placing = {grid_file(record.key) for record in records}
        (self.work / PLACING).write_text(json.dumps(sorted(self.placing | self.unjournaled)))
        return list(self.writers.map(self._write, records, arrays, range(len(records))))

    def _write(self, record: Record, array: Array, slot: int) -> Record:
        file = grid_file(record.key)
        target = os.path.join(self.folder, file)
        unfinished = os.path.join(self.work, f"{slot}.npy")
        try:
            if (above := os.path.dirname(target)) not in self.known_folders:
                make_folders(above)
                self.known_folders.add(above)
            if os.path.lexists(target) and not self._is_ours(file):
                raise FileExistsError(errno.EEXIST, "another program has left a file there; move it away")
            _save(unfinished, array)
            size = os.path.getsize(unfinished)
            os.replace(unfinished, target)
        except OSError as error:
            if error.errno not in _REFUSED_NAMES:
                raise
            return replace(record, error=f"its features cannot be written to {file} ({error.strerror})")
        return replace(record, file=file, file_bytes=size, shape=array.shape)

    def _is_ours(self, file: str) -> bool:
        hashes = self._journaled
        place = int(np.searchsorted(hashes, hash(file)))
        return file in self.unjournaled or (place < len(hashes) and int(hashes[place]) == hash(file))

    @cached_property
    def _journaled(self) -> Array:
        """int64, hashes of the names in the journals, in order."""
        return np.unique(np.fromiter(map(hash, read_names(self.folder)), np.int64))

    def is_intact(self, record: Record) -> bool:
        try:
            return os.stat(os.path.join(self.folder, str(record.file))).st_size == record.file_bytes
        except OSError:
            return False

    def settle(self) -> None:
        self.unjournaled -= self.placing

    def complete(self) -> None:
        """Files are in place as soon as they are complete."""

    def close(self) -> None:
        self.writers.shutdown()


PLACING = "placing.json"


def read_placing(work: Path) -> set[str]:
    """Files that a run was putting into their places when it ended."""
    try:
        return set(map(str, read_json(work / PLACING)))
    # Cut off, it was written by a run that had placed none of them yet.
    except (OSError, ValueError, TypeError):
        return set()


class ShardSink:
    """Shards `<name>_00000.npy` and so on, a row per image.

    Rows are appended to a raw file, which gets its header and its place when the shard is complete. A run that was
    killed goes on after the last row that the journal knows of.

    Args:
        folder: The folder of the run.
        work: A folder for unfinished shards, on the same file system.
        name: What file names start with.
        dtype: Type of the values.
        records: What the journals know already.
    """

    def __init__(self, folder: Path, work: Path, name: str, dtype: str, records: Iterable[Record]) -> None:
        self.folder = folder
        self.work = work
        self.name = name
        self.dtype = np.dtype(dtype)
        self.number = 0
        self.rows = 0
        self.row_shape: tuple[int, ...] = ()
        self._resume(record for record in records if record.row is not None and self._is_mine(record))
        self.raw = self._raw_path.open("ab")
        self.raw.truncate(self.rows * self._row_bytes)
        self.rows_in = cache(lambda file: _count_rows(folder / file))

    def _is_mine(self, record: Record) -> bool:
        return re.fullmatch(rf"{re.escape(self.name)}_\d+\.npy", str(record.file)) is not None

    def _resume(self, records: Iterable[Record]) -> None:
        """Finds the shard that is unfinished, and how many of its rows the journal knows."""
        last, known = "", 0
        for record in records:
            file = str(record.file)
            if file > last:
                last, known = file, 0
            if file == last:
                known = max(known, (record.row or 0) + 1)
            self.row_shape = record.shape
        if last:
            self.number = int(last.removesuffix(".npy").rpartition("_")[2])
            if (self.folder / last).exists() or not self._raw_path.exists():
                self.number += 1
            else:
                self.rows = min(known, self._raw_path.stat().st_size // self._row_bytes)
        # What no journal names is another program's.
        while (self.folder / self._file).exists():
            self.number += 1

    @property
    def _file(self) -> str:
        return f"{self.name}_{self.number:05d}.npy"

    @property
    def _raw_path(self) -> Path:
        return self.work / f"{self._file}.raw"

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize

    def write(self, records: Sequence[Record], arrays: Sequence[Array]) -> list[Record]:
        if not records:
            return []
        self.row_shape = arrays[0].shape
        append_all(self.raw.fileno(), np.stack(arrays).astype(self.dtype, copy=False))
        rows = range(self.rows, self.rows + len(records))
        self.rows = rows.stop
        return [
            replace(record, file=self._file, row=row, shape=self.row_shape)
            for record, row in zip(records, rows, strict=True)
        ]

    def is_intact(self, record: Record) -> bool:
        if record.file == self._file:
            return (record.row or 0) < self.rows
        return (record.row or 0) < self.rows_in(record.file)

    def settle(self) -> None:
        if self.rows * self._row_bytes >= SHARD_BYTES:
            self._complete_shard()

    def _complete_shard(self) -> None:
        self.raw.close()
        unfinished = self.work / self._file
        with unfinished.open("wb") as file, self._raw_path.open("rb") as raw:
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row_shape)}
            npy_format.write_array_header_1_0(file, header)
            shutil.copyfileobj(raw, file, 2**22)
        if (self.folder / self._file).exists():
            raise StoreError(f"{self.folder / self._file} was written by another program meanwhile; move it away")
        os.replace(unfinished, self.folder / self._file)
        self._raw_path.unlink()
        self.number, self.rows = self.number + 1, 0
        self.raw = self._raw_path.open("ab")

    def complete(self) -> None:
        if self.rows:
            self._complete_shard()

    def close(self) -> None:
        self.raw.close()


def _save(path: str, array: Array) -> None:
    """Writes what `np.save` writes, but where the disk is full, the error says so."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(array))
        file.write(array.data)


def _count_rows(shard: Path) -> int:
    try:
        return len(map_array(shard))
    except (OSError, ValueError):
        return 0
