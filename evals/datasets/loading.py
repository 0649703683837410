"""From what a user names to a data set."""

import difflib
import glob
from pathlib import Path

from evals.datasets.folders import image_folder, imagenet, is_imagenet
from evals.datasets.hugging_face import is_saved_dataset, saved_dataset
from evals.datasets.labelled import LabelledImages
from evals.datasets.made import MADE
from evals.datasets.shards import webdataset
from evals.datasets.tables import TABLE_SUFFIXES, image_table
from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images.sources import expand_braces
from sail_encoder.io.remote import is_remote


def load_dataset(
    name: str, labels: str | None = None, label_column: str | None = None, task: Kind = "classification"
) -> LabelledImages:
    """Loads a data set, of whatever kind it is.

    Args:
        name: A name of `MADE`; a folder of images in folders of classes, in the layout of ImageNet-1k, or written by
            Hugging Face's save_to_disk; a table (.csv, .tsv, .parquet); or tar shards (a file, a folder, a glob).
        labels: The labels of ImageNet's validation images: the devkit or a list of synsets.
        label_column: Where labels are in tables and shards; found by its name where left out.
        task: How to read the labels of tables and shards.

    Raises:
        DatasetError: If there is no such data set, or it has no labels.
    """
    if name in MADE:
        _refuse(name, labels=labels, label_column=label_column)
        made = MADE[name]()
        if task not in ("classification", made.task):
            raise DatasetError(f"{name} has targets of {made.task}, not of {task}; leave --task out")
        return made
    path = Path(name).expanduser()
    shards = _tar_shards(path, name)
    table = path.is_file() and path.suffix.lower() in TABLE_SUFFIXES
    if shards or table or is_saved_dataset(path):
        _refuse(f"{name}, which has labels of its own", labels=labels)
        if shards:
            return webdataset(shards, path.stem or name, label_column, task)
        return image_table(path, label_column, task) if table else saved_dataset(path, label_column, task)
    if not path.is_dir():
        nearest = difflib.get_close_matches(name, list(MADE), n=1)
        hint = f", did you mean '{nearest[0]}'?" if nearest else f"; use {', '.join(MADE)}, a folder, a table or shards"
        raise DatasetError(f"no data set '{name}'{hint}")
    _refuse("folders of images; it is for tables, shards and data sets", label_column=label_column)
    if task != "classification":
        raise DatasetError(f"folders name classes, but the task is {task}; give a table with the targets")
    if is_imagenet(path):
        return imagenet(path, Path(labels) if labels else None)
    _refuse(f"{name}, whose folders name the classes", labels=labels)
    return image_folder(path)


def _refuse(data: str, **options: str | None) -> None:
    """Refuses options that nothing would read."""
    for option, value in options.items():
        if value is not None:
            raise DatasetError(f"--{option} has no effect with {data}; leave it out")


def _tar_shards(path: Path, name: str) -> list[str]:
    """The tar files that a file, a folder of them, a glob, or a name with braces or a protocol names."""
    if path.suffix == ".tar" and path.is_file():
        return [str(path)]
    if path.is_dir():
        return sorted(str(shard) for shard in path.glob("*.tar"))
    names = expand_braces(name)
    if is_remote(name) or len(names) > 1:
        return names if all(one.endswith(".tar") for one in names) else []
    matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    return [match for match in matches if match.endswith(".tar")]
