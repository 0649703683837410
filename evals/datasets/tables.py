"""Lists of images with labels: CSV, TSV and parquet."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evals.datasets.labelled import PARTS, LabelledImages, parse_targets
from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images.lists import absolute_path, path_column
from sail_encoder.images.sources import list_images
from sail_encoder.io.files import require_regular

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
LABEL_COLUMNS = ("label", "class", "target", "labels", "category", "y")
"""Names under which a table may hold the labels, in order of preference."""


def image_table(path: Path, column: str | None, task: Kind) -> LabelledImages:
    """A table with a column of paths, one or several columns of labels, and perhaps a column `split`.

    Args:
        path: The table; relative paths in it start at its folder.
        column: The column of labels, or several separated by commas; found by its name where left out.
        task: How to read the labels.

    Raises:
        DatasetError: If a column or a label is missing.
    """
    rows = read_table(path)
    values = label_values(rows, column, path)
    column_of_paths = path_column(list(rows[0]), path)
    listing = list_images([str(path)])
    keys = {image.path: image.key for image in listing.images}
    folder = os.path.dirname(os.path.abspath(path))
    where = [absolute_path(str(row[column_of_paths] or ""), folder) for row in rows]
    listed = [keys.get(entry) for entry in where]
    if None in listed:
        raise DatasetError(f"row {listed.index(None) + 1} of {path} has no path")
    with naming(path):
        targets, labels = parse_targets(values, task)
        parts = [read_part(row.get("split")) for row in rows]
    return LabelledImages(path.stem, listing, [str(key) for key in listed], targets, parts, task, labels)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table.

    Raises:
        DatasetError: If it cannot be read or is empty.
    """
    try:
        require_regular(path)
        if path.suffix == ".parquet":
            rows = _read_parquet(path)
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a table ({error})") from None
    if not rows:
        raise DatasetError(f"{path} has no rows")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # The columns are looked at first, since two of one name end the reader of tables.
        path_column(parquet.read_schema(path).names, path)
        return list(parquet.read_table(path).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the table before what is wrong with a value in it.

    Raises:
        DatasetError: In place of one that does not say where it comes from.
    """
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def label_values(rows: Sequence[dict[str, Any]], column: str | None, path: Path) -> list[Any]:
    """The labels of a table: a cell a row, or a list of cells where there are several columns.

    Raises:
        DatasetError: If there is no such column.
    """
    chosen = column.split(",") if column else [name for name in LABEL_COLUMNS if name in rows[0]][:1]
    unknown = [name for name in chosen if name not in rows[0]]
    if not chosen or unknown:
        lack = f"no column '{unknown[0]}'" if unknown else "no column of labels"
        raise DatasetError(f"{path} has {lack}; there is {', '.join(rows[0])}; choose with --label_column")
    if len(chosen) == 1:
        return [row[chosen[0]] for row in rows]
    return [[row[name] for name in chosen] for row in rows]


def read_part(name: Any) -> str:
    """`train`, `val` or `test` from what a table calls it; an empty string for none.

    Raises:
        DatasetError: If it is none of these.
    """
    if name is None or name == "":
        return ""
    if str(name).lower() not in PARTS:
        raise DatasetError(f"split '{name}' is unknown; allowed is {', '.join(PARTS)}, or nothing")
    return PARTS[str(name).lower()]
