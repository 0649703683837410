"""Labelled images in webdataset's tar shards."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evals.datasets.labelled import LABEL_NAMES, PARTS, LabelledImages, parse_targets
from evals.errors import DatasetError
from heads.targets import Kind
from sail_encoder.images.files import clean_name, is_hidden
from sail_encoder.images.sources import list_images
from sail_encoder.images.tars import open_tar, read_members

LABEL_MEMBERS = ("cls", "label", "txt")
"""Suffixes of webdataset's members that hold a label as text, the most certain first, since a `txt` may be a caption.

`json`, which comes last, holds it under a name.
"""


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
    with open_tar(shard) as archive:
        for member in read_members(archive, shard):
            name = clean_name(member.name)
            sample, suffix = _sample(name), name.rpartition("/")[2].partition(".")[2]
            rank = ranks.get(suffix)
            file = None if rank is None or is_hidden(name) else archive.extractfile(member)
            # Of members of one name the last counts, as for images.
            if rank is None or file is None or (sample in found and found[sample][0] < rank):
                continue
            content = _as_text(file.read(), name)
            value = _from_json(content, column, name) if suffix == "json" else content.strip()
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
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{member} is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise DatasetError(f"{member} holds no fields; choose another member with --label_column")
    return next((fields[name] for name in ([column] if column else LABEL_NAMES) if name in fields), None)
