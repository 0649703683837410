"""Labelled images in shards: webdataset's tar files, and Hugging Face datasets that were saved to disk."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.datasets.labelled import PARTS, LabelledImages, MadeImage, parse_targets
from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images import ImageList, list_images

if TYPE_CHECKING:
    import pyarrow

LABEL_MEMBERS = ("cls", "label", "txt")
"""Suffixes of webdataset's members that hold a label as text, the most certain first, since a `txt` may be a caption.

`json`, which comes last, holds it under a name.
"""

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target")


def webdataset(shards: Sequence[str], name: str, column: str | None, task: Kind) -> LabelledImages:
    """Tar shards in which members that share a name belong together: `0001.jpg`, `0001.cls`, or `0001.json`.

    Args:
        shards: The tar files; a file name with `train`, `val` or `test` in it says which part it is.
        name: For reports.
        column: Suffix of the member with the label, or name of the label in `json`.
        task: How to read the labels.

    Raises:
        DatasetError: If an image has no label.
    """
    listing = list_images(list(shards))
    labels = {shard: _read_labels(shard, column) for shard in {image.path for image in listing.images}}
    values = []
    for image in listing.images:
        sample = _sample(image.key)
        found = next((labels[image.path][end] for end in _endings(sample) if end in labels[image.path]), None)
        if found is None:
            allowed = ", ".join(f".{suffix}" for suffix in (*LABEL_MEMBERS, "json"))
            raise DatasetError(f"{image.key} in {image.path} has no label beside it; allowed is {allowed}")
        values.append(found)
    targets, names = parse_targets(values, task)
    parts = [_part_of(Path(image.path).stem) for image in listing.images]
    return LabelledImages(name, listing, [image.key for image in listing.images], targets, parts, task, names)


def _part_of(stem: str) -> str:
    return next((PARTS[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in PARTS), "")


def _sample(member: str) -> str:
    """The name that members of one sample share: up to the first dot of the last part, as webdataset has it."""
    folder, _, name = member.rpartition("/")
    return f"{folder}/{name.split('.')[0]}" if folder else name.split(".")[0]


def _endings(sample: str) -> Iterator[str]:
    """The name itself, then without its first folder, and so on: keys begin with the name of the shard."""
    parts = sample.split("/")
    for first in range(len(parts)):
        yield "/".join(parts[first:])


def _read_labels(shard: str, column: str | None) -> dict[str, Any]:
    """The label of each sample, from the first of `LABEL_MEMBERS` that it has, or else from its `json`."""
    ranks = {suffix: rank for rank, suffix in enumerate([column] if column else LABEL_MEMBERS)}
    ranks.setdefault("json", len(ranks))
    found: dict[str, tuple[int, Any]] = {}
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            sample, suffix = _sample(member.name), member.name.rpartition("/")[2].partition(".")[2]
            rank = ranks.get(suffix)
            file = None if rank is None else archive.extractfile(member)
            if rank is None or file is None or (sample in found and found[sample][0] <= rank):
                continue
            content = _as_text(file.read(), member.name)
            value = _from_json(content, column, member.name) if suffix == "json" else content.strip()
            if value is not None:
                found[sample] = rank, value
    return {sample: value for sample, (_, value) in found.items()}


def _as_text(content: bytes, member: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{member} is no text ({error}); choose another member with --label_column") from None


def _from_json(content: str, column: str | None, member: str) -> Any:
    try:
        fields = json.loads(content)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{member} is not JSON ({error})") from None
    return next((fields[name] for name in ([column] if column else LABEL_NAMES) if name in fields), None)


def is_saved_dataset(folder: Path) -> bool:
    """Whether Hugging Face's `save_to_disk` has written the folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def saved_dataset(folder: Path, column: str | None, task: Kind) -> LabelledImages:
    """A Hugging Face dataset with images, as `save_to_disk` leaves it; images stay where they are.

    Args:
        folder: With a folder a split, or of a single split.
        column: The column of labels; found by its name where left out.
        task: How to read the labels.

    Raises:
        DatasetError: If there is no column of images or labels.
    """
    splits = [("", folder)]
    if (folder / "dataset_dict.json").exists():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        splits = [(name, folder / name) for name in names]
    images: list[MadeImage] = []
    values: list[Any] = []
    parts: list[str] = []
    for name, split in splits:
        more, labels = _read_split(name, split, column)
        images += more
        values += labels
        parts += [PARTS.get(name.lower(), "")] * len(more)
    targets, labels = parse_targets(values, task)
    listing = ImageList(str(folder.absolute()), list(images))
    return LabelledImages(folder.name, listing, [image.key for image in images], targets, parts, task, labels)


def _read_split(name: str, folder: Path, column: str | None) -> tuple[list[MadeImage], list[Any]]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):
        raise DatasetError(f"{folder} holds a selection of another data set; save it after flatten_indices()")
    features = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))["features"]
    image_column = next((key for key, kind in features.items() if kind.get("_type") == "Image"), None)
    label_column = column or next((key for key in LABEL_NAMES if key in features), None)
    if image_column is None or label_column not in features:
        lack = "images" if image_column is None else "labels"
        raise DatasetError(f"{folder} has no column of {lack}; there is {', '.join(features)}; see --label_column")
    images: list[MadeImage] = []
    values: list[Any] = []
    for file in state["_data_files"]:
        table = _open_arrow(folder / file["filename"])
        for row in range(table.num_rows):
            key = f"{name or folder.name}/{len(images):08d}"
            make = partial(_image_bytes, table, image_column, row, folder)
            size = table[image_column][row]["bytes"].as_buffer()
            images.append(MadeImage(key=key, path=key, size=size.size if size else 0, make=make))
        values += table[label_column].to_pylist()
    return images, _class_names(values, features[label_column])


def _open_arrow(path: Path) -> "pyarrow.Table":
    """A table that stays on disk: its buffers are pages of the file."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()


def _image_bytes(table: "pyarrow.Table", column: str, row: int, folder: Path) -> bytes:
    cell = table[column][row].as_py()
    if cell["bytes"] is not None:
        return cell["bytes"]
    path = folder / Path(cell["path"]).name
    return path.read_bytes()


def _class_names(values: list[Any], kind: dict[str, Any]) -> list[Any]:
    """Names in place of numbers, where the data set has names."""
    names = kind.get("names") if kind.get("_type") == "ClassLabel" else None
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]
