"""The tables that a run leaves beside its features."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sail_encoder.store.journal import Record


def write_index(folder: Path, records: Sequence[Record]) -> None:
    """Writes index.parquet, a row an image; a failed image has no file."""
    import pyarrow
    from pyarrow import parquet

    columns = {
        "path": pyarrow.array([record.key for record in records], pyarrow.string()),
        "status": pyarrow.array(["failed" if record.error else "done" for record in records], pyarrow.string()),
        "file": pyarrow.array([record.file for record in records], pyarrow.string()),
        "row": pyarrow.array([record.row for record in records], pyarrow.int64()),
    }
    for name, pairs in (
        ("grid", [record.grid for record in records]),
        ("image", [record.image_size for record in records]),
        ("resized", [record.resized_size for record in records]),
    ):
        columns[f"{name}_height"] = pyarrow.array([height for height, _ in pairs], pyarrow.int32())
        columns[f"{name}_width"] = pyarrow.array([width for _, width in pairs], pyarrow.int32())
    columns["exif_orientation"] = pyarrow.array([record.exif_orientation for record in records], pyarrow.int8())
    with replacing(folder, "index.parquet") as unfinished:
        parquet.write_table(pyarrow.table(columns), unfinished)


def write_failures(folder: Path, records: Sequence[Record]) -> None:
    """Writes failures.csv, or removes it where nothing has failed."""
    path = folder / "failures.csv"
    if not records:
        path.unlink(missing_ok=True)
        return
    with replacing(folder, path.name) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "reason"])
        table.writerows([record.key, record.error] for record in records)


def write_json(folder: Path, name: str, content: Any) -> None:
    """Writes a JSON file."""
    with replacing(folder, name) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replacing(folder: Path, name: str) -> Iterator[Path]:
    """Gives a path to write to, and puts the file in its place when it is complete."""
    unfinished = folder / ".work" / name
    yield unfinished
    os.replace(unfinished, folder / name)
