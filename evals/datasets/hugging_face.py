"""Labelled images of Hugging Face datasets that were saved to disk."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from evals.datasets.labelled import LABEL_NAMES, PARTS, LabelledImages, MadeImage, parse_targets
from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images.sources import ImageList

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 256
"""Rows whose sizes are looked up at once; those of a selection are copied for it."""


def is_saved_dataset(folder: Path) -> bool:
    """Tells whether Hugging Face's `save_to_disk` has written the folder, by its files, without the library."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def saved_dataset(folder: Path, column: str | None, task: Kind) -> LabelledImages:
    """Labelled images of what `save_to_disk` has written; an image is read from its file when it is its turn.

    Args:
        folder: Of a `DatasetDict`, or of a single `Dataset`.
        column: The column of labels; found by its name where left out.
        task: How to read the labels.

    Raises:
        DatasetError: If the library is missing, the folder is damaged, or it has no column of images or labels.
    """
    library = _import_datasets(folder)
    try:
        loaded = library.load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{folder} cannot be read as a Hugging Face dataset ({reason}); save it again") from None
    splits = loaded if isinstance(loaded, library.DatasetDict) else {"": loaded}
    images: list[MadeImage] = []
    values: list[Any] = []
    parts: list[str] = []
    for name, split in splits.items():
        # A format that was saved with the set, such as torch's, is for training and not for reading.
        plain = split.with_format(None)
        image_column, label_column = _columns(plain, column, folder)
        images += _images(plain, image_column, name or folder.name)
        values += _labels(plain, label_column)
        parts += [PARTS.get(name.lower(), "")] * len(plain)
    targets, labels = parse_targets(values, task)
    listing = ImageList(str(folder.absolute()), list(images))
    return LabelledImages(folder.name, listing, [image.key for image in images], targets, parts, task, labels)


def _import_datasets(folder: Path) -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DatasetError(f"{folder} is a Hugging Face dataset, which needs a library: pip install datasets") from None
    return datasets


def _columns(split: "Dataset", column: str | None, folder: Path) -> tuple[str, str]:
    """The columns of images and of labels."""
    from datasets import Image

    image_column = next((name for name, kind in split.features.items() if isinstance(kind, Image)), None)
    label_column = column or next((name for name in LABEL_NAMES if name in split.features), None)
    if image_column is None or label_column is None or label_column not in split.features:
        lack = "images" if image_column is None else "labels"
        raise DatasetError(
            f"{folder} has no column of {lack}; there is {', '.join(split.features)}; see --label_column"
        )
    return image_column, label_column


def _images(split: "Dataset", column: str, name: str) -> Iterator[MadeImage]:
    from datasets import Image

    encoded = split.select_columns([column]).cast_column(column, Image(decode=False))
    # Saved again, a set may hold other images of the same sizes.
    modified = max((os.stat(file["filename"]).st_mtime_ns for file in split.cache_files), default=None)
    for row, size in enumerate(_sizes(encoded, column)):
        key = f"{name}/{row:08d}"
        make = partial(_read_image, encoded, column, row)
        yield MadeImage(key=key, path=key, size=size, modified=modified, make=make)


def _sizes(encoded: "Dataset", column: str) -> Iterator[int]:
    """Bytes of each image, 0 where there are none, without touching the bytes themselves."""
    from pyarrow import compute

    for rows in encoded.with_format("arrow").iter(batch_size=_ROWS):
        lengths = compute.binary_length(compute.struct_field(rows[column], "bytes"))
        yield from compute.fill_null(lengths, 0).to_pylist()


def _read_image(encoded: "Dataset", column: str, row: int) -> bytes:
    cell = encoded[row][column] or {"bytes": b"", "path": None}
    if cell["bytes"] is None and cell["path"]:
        return Path(cell["path"]).read_bytes()
    return cell["bytes"] or b""


def _labels(split: "Dataset", column: str) -> list[Any]:
    """Labels, by their names where the set has names; None where one is missing."""
    from datasets import ClassLabel

    values, kind = split[column][:], split.features[column]
    if not isinstance(kind, ClassLabel):
        return values
    return [None if value is None or value < 0 else kind.names[value] for value in values]
