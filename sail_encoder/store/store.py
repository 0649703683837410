"""The folder that a run leaves, written so that a kill at any moment loses nothing and leaves no half-written file.

It holds `features/<key>.npy` for each image, or shards `features_00000.npy` with a row per image; `journal.jsonl`, the
truth about what is complete; and, derived from it, `index.parquet`, `failures.csv` and `run.json`. Work in progress
lies in `.work`, which a finished run removes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sail_encoder.images.files import ImageFile
from sail_encoder.images.table import Array, images_at, index_of
from sail_encoder.io.errors import StoreError
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.locks import lock, locked_folder
from sail_encoder.io.refusals import explain_refusals
from sail_encoder.io.runs import RUN, check_settings, read_run, require_own, write_run
from sail_encoder.store.index import FAILURES, INDEX, LOOKERS, ImageStates, write_failures, write_index
from sail_encoder.store.records import (
    Record,
    is_below,
    list_journals,
    packs_at_once,
    read_journal,
    read_journals,
    read_names,
)
from sail_encoder.store.shares import WHOLE, Share
from sail_encoder.store.sinks import FileSink, ShardSink, Sink, read_placing
from sail_encoder.store.work import WorkFolder, abandoned, living

COMMAND = "extract"
WORK = ".work"


class FeatureStore:
    """The output folder of a run, or of one share of it; leaving its `with` block ends the claim on the folder.

    A folder that is left before `finish` stays as it is, and the same command goes on from there.

    Args:
        folder: Where to write; made if need be.
        settings: All that decides what the features are. A folder made with other settings is refused.
        pooled: Whether images are pooled and share files.
        dtype: Type of the stored values.
        share: Which share of the images this process writes.

    Raises:
        StoreError: If the settings differ from an earlier run's, another process writes this share, or the folder
            holds something else or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        pooled: bool = False,
        dtype: str = "float16",
        share: Share = WHOLE,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.share = share
        with explain_refusals(folder), ExitStack() as claims:
            folder.mkdir(parents=True, exist_ok=True)
            with locked_folder(folder):
                _claim(folder, settings)
                self.journal = claims.enter_context(LineLog(folder / f"{share.name('journal')}.jsonl"))
                self.work = WorkFolder(folder / WORK / share.name("run"))
                claims.callback(self.work.close)
            self._begun_at = self.journal.end_of_lines()
            self.sink = self._open_sink(pooled, dtype)
            claims.pop_all()

    def _open_sink(self, pooled: bool, dtype: str) -> Sink:
        records = chain.from_iterable(read_journals(self.folder))
        if pooled:
            return ShardSink(self.folder, self.work.path, self.share.name("features"), dtype, records)
        # A damaged journal is found here, before any work.
        for _ in records:
            pass
        return FileSink(self.folder, self.work.path)

    def missing(self, images: Sequence[ImageFile]) -> list[Sequence[ImageFile]]:
        """The images that are still to be done, as stretches of neighbours.

        Images that were encoded together are done together or not at all, so that a resumed run forms the packs that
        an uninterrupted one would have. Of images that are done, files and features are looked at in threads.
        """
        done = np.zeros(len(images), bool)
        with ThreadPoolExecutor(LOOKERS) as pool:
            for packs in packs_at_once(read_journals(self.folder)):
                encoded = [[record for record in pack if record.error is None] for pack in packs]
                rows = index_of(images).rows([record.key for pack in encoded for record in pack])
                known = iter(images_at(images, rows))
                pairs = [[(record, next(known)) for record in pack] for pack in encoded]
                start = 0
                for pack, is_current in zip(pairs, pool.map(self._are_current, pairs), strict=True):
                    listed = rows[start : start + len(pack)]
                    done[listed[listed >= 0]] = is_current
                    start += len(pack)
        edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(np.int8)))
        return [images[start:stop] for start, stop in edges.reshape(-1, 2).tolist()]

    def _are_current(self, pack: Sequence[tuple[Record, ImageFile | None]]) -> bool:
        return all((image is None or record.is_of(image)) and self.sink.is_intact(record) for record, image in pack)

    def write(self, records: Sequence[Record], arrays: Sequence[Array | None]) -> list[Record]:
        """Stores the results of one pack; a record without an array has failed and is noted as it is.

        Raises:
            StoreError: If the disk is full, or does not take files any more, or the journal was deleted.
        """
        good = [(record, array) for record, array in zip(records, arrays, strict=True) if array is not None]
        failed = [record for record, array in zip(records, arrays, strict=True) if array is None]
        with explain_refusals(self.folder):
            placed = self.sink.write([record for record, _ in good], [array for _, array in good])
            pack = [*placed, *failed]
            self.journal.append([record.values for record in pack])
            self.sink.settle()
        return pack

    def finish(self, images: Sequence[ImageFile], report: dict[str, Any]) -> dict[str, int]:
        """Brings all files into place and writes the index, the list of failures and the report of this run.

        Args:
            images: All images of all shares, in the order that the index is to have.
            report: What is to be reported of this run.

        Returns:
            How many images are done, have failed, and are still to be done.

        Raises:
            StoreError: If the disk is full, or does not take files any more, or files that this run has written were
                deleted meanwhile.
        """
        with explain_refusals(self.folder):
            self.sink.complete()
            self.journal.require_in_place()
            lost = self._lost()
            with locked_folder(self.folder):
                states = ImageStates.read(self.folder, images)
                states.forget(lost)
                write_index(self.folder, states, self.work.path)
                write_failures(self.folder, states, self.work.path)
                run = read_run(self.folder) or {"settings": self.settings}
                write_run(
                    self.folder,
                    COMMAND,
                    {"settings": run["settings"], "runs": [*run.get("runs", []), report]},
                    self.work.path,
                )
                self.close()
                self._remove_idle_work()
        if lost:
            raise StoreError(
                f"{self.folder}: features of {len(lost):,} images were deleted while the run wrote them, such as those "
                f"of {lost[0]}; the same command writes them again"
            )
        return states.totals(self.share.holds(images))

    def _lost(self) -> list[str]:
        """Images that this run has stored, and whose features are not there any more."""
        lost = []
        with ThreadPoolExecutor(LOOKERS) as pool:
            for packs in packs_at_once(read_journal(self.journal.path, self._begun_at)):
                stored = [[record for record in pack if record.file is not None] for pack in packs]
                for pack, is_intact in zip(stored, pool.map(self._is_intact, stored), strict=True):
                    lost += [] if is_intact else [record.key for record in pack if not self.sink.is_intact(record)]
        return lost

    def _is_intact(self, pack: Iterable[Record]) -> bool:
        return all(map(self.sink.is_intact, pack))

    def close(self) -> None:
        """Lets go of all files, and of the claim on the folder."""
        self.sink.close()
        self.work.close()
        self.journal.close()

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove_idle_work(self) -> None:
        """Deletes what this run, and runs that certainly live no longer, have left in `.work`; the folder is locked."""
        self.work.remove()
        for entry in abandoned(self.folder / WORK):
            with (self.folder / f"journal{entry.name.removeprefix('run')}.jsonl").open("ab") as journal:
                if lock(journal, wait=False, path=entry):
                    WorkFolder.remove_tree(entry)
        _remove_leftovers(self.folder / WORK)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Writes run.json, or compares the settings with those in it."""
    if (folder / RUN).exists():
        check_settings(folder, settings, COMMAND)
        return
    foreign = [name for name in (INDEX, FAILURES) if (folder / name).exists()]
    if foreign and not list_journals(folder):
        raise StoreError(f"{folder} has {foreign[0]} but no {RUN}, so it is not overwritten; use another --out")
    write_run(folder, COMMAND, {"settings": settings, "runs": []})


def _remove_leftovers(work: Path) -> None:
    """Deletes `.work` unless others use it, with tables that a killed run of version 0.1.0 has left there."""
    for name in (INDEX, FAILURES, RUN):
        (work / name).unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()


def has_run(folder: Path) -> bool:
    """Tells whether there is a run to delete.

    Raises:
        StoreError: If the folder holds features but no run.json of ours, so that they may not be ours.
    """
    run = require_own(folder, COMMAND)
    if run is None and (folder / "features").exists():
        raise StoreError(f"{folder} has features but no {RUN}, so it is not overwritten; use another --out")
    return run is not None


def remove_run(folder: Path) -> None:
    """Deletes an earlier run from a folder: what its journals name, and nothing else.

    Raises:
        StoreError: If the folder holds what may not be ours, or a run that is still writing.
    """
    if not has_run(folder):
        return
    with explain_refusals(folder), ExitStack() as claims:
        claims.enter_context(locked_folder(folder))
        journals = list_journals(folder)
        # Claimed before anything is deleted, as another run may be writing one of them.
        for journal in journals:
            claims.enter_context(LineLog(journal))
        writing = living(folder / WORK)
        if writing:
            raise StoreError(f"another run is writing in {writing[0]}; wait for it, or write elsewhere")
        _remove_files(folder, chain(read_names(folder), *map(read_placing, (folder / WORK).glob("run*"))))
        for work in abandoned(folder / WORK) if (folder / WORK).is_dir() else ():
            WorkFolder.remove_tree(work)
        _remove_leftovers(folder / WORK)
        for path in (*journals, folder / INDEX, folder / FAILURES, folder / RUN):
            path.unlink(missing_ok=True)


def _remove_files(folder: Path, names: Iterator[str]) -> None:
    """Deletes files, and the folders that are empty without them."""
    folders = set()
    for name in filter(is_below, names):
        (folder / name).unlink(missing_ok=True)
        folders.add(os.path.dirname(name))
    for place in sorted(folders - {""}, key=len, reverse=True):
        while place:
            with suppress(OSError):
                (folder / place).rmdir()
            place = os.path.dirname(place)
