"""Labels for features that `sail extract` has left."""

from collections import Counter
from pathlib import Path

import numpy as np

from evals.datasets.labelled import LabelledImages, parse_targets, parts_and_classes
from evals.datasets.tables import label_values, naming, read_part, read_table
from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images.lists import path_column
from sail_encoder.images.sources import ImageList
from sail_encoder.store.reading import FeatureFolder


def label_features(folder: FeatureFolder, labels: str | None, column: str | None, task: Kind) -> LabelledImages:
    """Labels the images of a folder of features, by their folders' names or from a table.

    Args:
        folder: What was extracted.
        labels: A table (.csv, .tsv, .parquet) with a column of paths as in index.parquet, or of the same files.
        column: The column of labels; found by its name where left out.
        task: How to read the labels.

    Raises:
        DatasetError: If an image has no label.
    """
    if labels is not None:
        return _by_table(folder, Path(labels), column, task)
    if column is not None:
        raise DatasetError("--label_column has no effect without a table; give one as --labels")
    if task != "classification":
        raise DatasetError(f"folders name classes, but the task is {task}; give a table with the targets as --labels")
    return _by_folders(folder)


def _by_folders(folder: FeatureFolder) -> LabelledImages:
    keys = [entry.path for entry in folder.entries]
    pairs = parts_and_classes(keys, "give a table as --labels")
    targets = np.array([name for _, name in pairs])
    return LabelledImages(folder.folder.name, _sources(folder), keys, targets, [part for part, _ in pairs])


def _by_table(folder: FeatureFolder, table: Path, column: str | None, task: Kind) -> LabelledImages:
    rows = read_table(table)
    where = path_column(list(rows[0]), table)
    paths = [_key(str(row[where]), folder.settings["root"]) for row in rows]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DatasetError(f"{table} lists {len(twice)} paths more than once, such as {twice[0]}; keep one row of each")
    values = dict(zip(paths, label_values(rows, column, table), strict=True))
    with naming(table):
        parts = {path: read_part(row.get("split")) for path, row in zip(paths, rows, strict=True)}
    keys = [entry.path for entry in folder.entries]
    unlabelled = [key for key in keys if key not in values]
    if unlabelled:
        raise DatasetError(f"{table} has no label for {len(unlabelled)} of {len(keys)} images, such as {unlabelled[0]}")
    with naming(table):
        targets, names = parse_targets([values[key] for key in keys], task)
    return LabelledImages(
        folder.folder.name, _sources(folder), keys, targets, [parts[key] for key in keys], task, names
    )


def _sources(folder: FeatureFolder) -> ImageList:
    """Places of the images; none are read again."""
    return ImageList(str(folder.settings["root"]), [])


def _key(path: str, root: str) -> str:
    """A path as index.parquet has it: relative to the source, with forward slashes."""
    return path.replace("\\", "/").removeprefix(f"{root}/").removeprefix("./")
