"""The folder that a run leaves, written so that a kill at any moment loses nothing and leaves no half-written file.

It holds `features/<key>.npy` for each image, or shards `features_00000.npy` with a row an image; `journal.jsonl`, the
truth about what is complete; and, derived from it, `index.parquet`, `failures.csv` and `run.json`. Work in progress
lies in `.work`, which a finished run removes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from sail_encoder.images.decoding import Array
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import StoreError, name_changes
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.locks import lock, locked_folder
from sail_encoder.io.refusals import explain_refusals
from sail_encoder.store.index import current_records, write_failures, write_index, write_json
from sail_encoder.store.records import Record, read_journals
from sail_encoder.store.run_file import read_run
from sail_encoder.store.shard import WHOLE, Shard
from sail_encoder.store.sinks import FileSink, ShardSink, Sink


class FeatureStore:
    """The output folder of a run, or of one shard of it; leaving its `with` block ends the claim on the folder.

    A folder that is left before `finish` stays as it is, and the same command goes on from there.

    Args:
        folder: Where to write; made if need be.
        settings: All that decides what the features are. A folder made with other settings is refused.
        pooled: Whether images are pooled and share files.
        dtype: Type of the stored values.
        shard: Which part of the images this process writes.

    Raises:
        StoreError: If the settings differ from an earlier run's, another process writes this shard, or the folder
            holds something else or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        pooled: bool = False,
        dtype: str = "float16",
        shard: Shard = WHOLE,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.shard = shard
        with explain_refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked_folder(folder):
                (folder / ".work").mkdir(exist_ok=True)
                _claim(folder, settings)
                self.journal = LineLog(folder / f"{shard.name('journal')}.jsonl")
            try:
                self.packs = list(read_journals(folder))
                self.records = {record.key: record for pack in self.packs for record in pack}
                self.sink = self._open_sink(pooled, dtype)
            except BaseException:
                self.journal.close()
                raise

    def _open_sink(self, pooled: bool, dtype: str) -> Sink:
        work = self.folder / ".work" / self.shard.name("run")
        work.mkdir(parents=True, exist_ok=True)
        if pooled:
            return ShardSink(self.folder, work, self.shard.name("features"), dtype, self.records.values())
        return FileSink(self.folder, work)

    def missing(self, images: Sequence[ImageFile]) -> list[list[ImageFile]]:
        """The images that are still to be done, as stretches of neighbours.

        Images that were encoded together are done together or not at all, so that a resumed run forms the packs that
        an uninterrupted one would have.
        """
        listed = {image.key: image for image in images}
        done: set[str] = set()
        for pack in self.packs:
            encoded = [record for record in pack if record.error is None]
            keys = {record.key for record in encoded}
            if all(self._is_current(record, listed.get(record.key)) for record in encoded):
                done |= keys
            else:
                done -= keys
        stretches: list[list[ImageFile]] = [[]]
        for image in images:
            if image.key not in done:
                stretches[-1].append(image)
            elif stretches[-1]:
                stretches.append([])
        return [stretch for stretch in stretches if stretch]

    def _is_current(self, record: Record, image: ImageFile | None) -> bool:
        return (image is None or record.is_of(image)) and self.sink.is_intact(record)

    def write(self, records: Sequence[Record], arrays: Sequence[Array | None]) -> list[Record]:
        """Stores the results of one pack; a record without an array has failed and is noted as it is.

        Raises:
            StoreError: If the disk is full, or does not take files any more.
        """
        good = [(record, array) for record, array in zip(records, arrays, strict=True) if array is not None]
        failed = [record for record, array in zip(records, arrays, strict=True) if array is None]
        with explain_refusals(self.folder):
            placed = self.sink.write([record for record, _ in good], [array for _, array in good])
            pack = [*placed, *failed]
            self.journal.append([asdict(record) for record in pack])
            self.sink.settle()
        self.records.update({record.key: record for record in pack})
        return pack

    def finish(self, images: Sequence[ImageFile], report: dict[str, Any]) -> int:
        """Brings all files into place and writes the index, the list of failures and the report of this run.

        Args:
            images: All images of all shards, in the order that the index is to have.
            report: What is to be reported of this run.

        Returns:
            How many of the images are still to be done by other shards.

        Raises:
            StoreError: If the disk is full, or does not take files any more.
        """
        with explain_refusals(self.folder):
            self.sink.complete()
            with locked_folder(self.folder):
                rows = current_records(self.folder, images)
                write_index(self.folder, rows)
                write_failures(self.folder, [record for record in rows if record.error])
                run = read_run(self.folder) or {"settings": self.settings}
                write_json(self.folder, "run.json", {**run, "runs": [*run.get("runs", []), report]})
                self.close()
                self._remove_idle_work()
        return sum(record.status == "pending" for record in rows)

    def close(self) -> None:
        """Lets go of all files, and of the claim on the folder."""
        self.sink.close()
        self.journal.close()

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove_idle_work(self) -> None:
        """Deletes what this run, and runs that no longer live, have left in `.work`; the folder is locked meanwhile."""
        work = self.folder / ".work"
        for entry in work.iterdir():
            if entry.is_file():
                entry.unlink()
                continue
            with (self.folder / f"journal{entry.name.removeprefix('run')}.jsonl").open("ab") as journal:
                if lock(journal, wait=False):
                    shutil.rmtree(entry)
        if not any(work.iterdir()):
            work.rmdir()


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Writes run.json, or compares the settings with those in it."""
    if (folder / "run.json").exists():
        check_settings(folder, settings)
    else:
        write_json(folder, "run.json", {"settings": settings, "runs": []})


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Compares settings with those of an earlier run in the folder, if there was one.

    Raises:
        StoreError: If one differs, or run.json is not of such a run.
    """
    run = read_run(folder)
    if run is None:
        return
    changes = name_changes(run["settings"], settings)
    if changes:
        raise StoreError(f"{folder} holds a run with other settings: {changes}; use another --out or --overwrite true")
