"""Labels for features that `sail extract` has left."""

from pathlib import Path

import numpy as np

from evals.datasets.labelled import DatasetError, LabelledImages, Task, parse_targets, parts_and_classes
from evals.datasets.tables import label_values, read_part, read_table
from sail_encoder.images import PATH_COLUMNS, ImageList
from sail_encoder.store.reading import FeatureFolder


def label_features(folder: FeatureFolder, labels: str | None, column: str | None, task: Task) -> LabelledImages:
    """Labels the images of a folder of features, by their folders' names or from a table.

    Args:
        folder: What was extracted.
        labels: A table (.csv, .tsv, .parquet) with a column of paths as in index.parquet, or of the same files.
        column: The column of labels; found by its name where left out.
        task: How to read the labels.

    Raises:
        DatasetError: If an image has no label.
    """
    keys = [entry.path for entry in folder.entries]
    images = ImageList(str(folder.settings["root"]), [])
    if labels is None:
        if task != "classification":
            raise DatasetError(
                f"folders name classes, but the task is {task}; give a table with the targets as --labels"
            )
        pairs = parts_and_classes(keys)
        targets = np.array([name for _, name in pairs])
        return LabelledImages(folder.folder.name, images, keys, targets, [part for part, _ in pairs])
    rows = read_table(Path(labels))
    place = next((name for name in PATH_COLUMNS if name in rows[0]), None)
    if place is None:
        raise DatasetError(f"{labels} has no column of paths; name it '{PATH_COLUMNS[0]}'")
    values = dict(
        zip((_key(str(row[place]), images.root) for row in rows), label_values(rows, column, Path(labels)), strict=True)
    )
    parts = {_key(str(row[place]), images.root): read_part(row.get("split")) for row in rows}
    unlabelled = [key for key in keys if key not in values]
    if unlabelled:
        raise DatasetError(
            f"{labels} has no label for {len(unlabelled)} of {len(keys)} images, such as {unlabelled[0]}"
        )
    targets, names = parse_targets([values[key] for key in keys], task)
    return LabelledImages(folder.folder.name, images, keys, targets, [parts[key] for key in keys], task, names)


def _key(path: str, root: str) -> str:
    """A path as index.parquet has it: relative to the source, with forward slashes."""
    return path.replace("\\", "/").removeprefix(f"{root}/").removeprefix("./")
