"""The tables that a run leaves beside its features."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sail_encoder.images.sources import ImageFile
from sail_encoder.store.records import Record, read_journals


def current_records(folder: Path, images: Sequence[ImageFile]) -> list[Record]:
    """What the journals of all shards know of these images, in their order, and behind them of images of earlier runs.

    Images that nobody has done yet are pending; so are those whose features wait in a shard that is not complete.
    """
    listed = {image.key: image for image in images}
    is_complete = cache(lambda file: (folder / file).exists())
    known: dict[str, Record] = {}
    for record in (record for pack in read_journals(folder) for record in pack):
        image, earlier = listed.get(record.key), known.get(record.key)
        outdated = image and earlier and earlier.is_of(image) and not record.is_of(image)
        if not outdated and (record.row is None or is_complete(record.file)):
            known[record.key] = record
    others = sorted(known.keys() - listed.keys())
    return [*(known.get(image.key) or Record.begin(image) for image in images), *(known[key] for key in others)]


def list_undone(folder: Path, images: Sequence[ImageFile]) -> list[ImageFile]:
    """The images that index.parquet does not call done or failed."""
    from pyarrow import parquet

    if not (folder / "index.parquet").exists():
        return list(images)
    table = parquet.read_table(folder / "index.parquet", columns=["path", "status"]).to_pydict()
    settled = {path for path, status in zip(table["path"], table["status"], strict=True) if status != "pending"}
    return [image for image in images if image.key not in settled]


def write_index(folder: Path, records: Sequence[Record]) -> None:
    """Writes index.parquet, a row an image; a failed image and a pending one have no file."""
    import pyarrow
    from pyarrow import parquet

    columns = {
        "path": pyarrow.array([record.key for record in records], pyarrow.string()),
        "status": pyarrow.array([record.status for record in records], pyarrow.string()),
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
