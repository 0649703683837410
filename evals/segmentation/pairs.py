"""Finding the images of a data set and the masks that belong to them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from evals.errors import DatasetError
from evals.segmentation.labels import ClassMap, read_lines
from sail_encoder.images.sources import IMAGE_SUFFIXES
from sail_encoder.io.files import irregular_entry, walk

SplitName = Literal["train", "val"]
LayoutName = Literal["folder", "ade20k", "cityscapes", "voc2012", "voc2012aug", "context59", "context60", "cocostuff"]

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif"})
"""Formats that keep ids as they are; JPEG does not."""

_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """One image and its mask.

    Attributes:
        name: The image's path without its suffix, relative to the folder of images.
        image: The image file.
        mask: The mask file.
    """

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Part:
    """A folder of images and one of masks that belong together.

    Attributes:
        images: Relative to the root.
        masks: Relative to the root.
        listing: A text file with the names that are meant; all images of the folder where it is None.
        image_ending: What an image's name has after the name of the sample.
        mask_ending: What a mask's name has there.
    """

    images: str
    masks: str
    listing: str | None = None
    image_ending: str = ""
    mask_ending: str = ""

    def is_in(self, root: Path) -> bool:
        """Tells whether all of it is there."""
        needed = [self.images, self.masks, *([self.listing] if self.listing else [])]
        return all((root / path).exists() for path in needed)


@dataclass(frozen=True)
class Layout:
    """Layout of a data set.

    Attributes:
        train: Ways in which the training images may be stored, each as parts that are taken together.
        val: The same for the validation images.
        class_map: Its classes; None where they have to be found.
        inside: Folders below the given one in which the data set may lie.
    """

    train: Sequence[Sequence[Part]]
    val: Sequence[Sequence[Part]]
    class_map: ClassMap | None = None
    inside: Sequence[str] = ()

    def list_samples(self, root: str | Path, split: SplitName) -> list[Sample]:
        """The samples of a split, in the order of their names.

        Raises:
            DatasetError: If the folders are not there or are empty, or images and masks do not pair up.
        """
        base, parts = self.find(root, split)
        return [sample for part in parts for sample in _pair(base, part)]

    def ways(self, split: SplitName) -> Sequence[Sequence[Part]]:
        """Ways in which the images of a split may be stored."""
        return self.train if split == "train" else self.val

    def find(self, root: str | Path, split: SplitName) -> tuple[Path, Sequence[Part]]:
        """The folder in which the data set lies, and the parts that make a split there.

        Raises:
            DatasetError: If the folders are not there.
        """
        ways = self.ways(split)
        for base, parts in product([Path(root), *(Path(root) / name for name in self.inside)], ways):
            if all(part.is_in(base) for part in parts):
                return base, parts
        if not Path(root).is_dir():
            raise DatasetError(f"no folder {root}")
        expected = " and ".join(f"{part.images} with {part.masks}" for part in ways[0])
        raise DatasetError(f"{root} has no {split} split in this layout ({expected}); choose another --layout")


def _pair(root: Path, part: Part) -> Iterator[Sample]:
    """The samples of a part; every image has a mask, and every mask an image."""
    images = _index(root / part.images, IMAGE_SUFFIXES, part.image_ending)
    masks = _index(root / part.masks, MASK_SUFFIXES, part.mask_ending)
    if part.listing is not None:
        names = _read_listing(root / part.listing)
        _complain([name for name in names if name not in images], "has no image", root / part.images)
    else:
        names = list(images)
        # COCO-Stuff's folder of masks may hold converted copies, named after the mask.
        others = [name for name in masks if name not in images and name.rpartition("_")[0] not in images]
        _complain(others, "has a mask but no image", root / part.images)
    if not names:
        raise DatasetError(f"no images in {root / part.images}")
    formats = ", ".join(sorted(MASK_SUFFIXES))
    _complain([name for name in names if name not in masks], "has no mask", root / part.masks, f" ({formats})")
    for name in sorted(names):
        yield Sample(name, images[name], masks[name])


def _index(folder: Path, suffixes: frozenset[str], ending: str) -> dict[str, Path]:
    """Files below a folder by name, without suffix and ending."""
    found: dict[str, Path] = {}
    for path in sorted(_walk(folder)):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in suffixes or not stem.endswith(ending):
            continue
        name = os.path.relpath(stem.removesuffix(ending), folder).replace(os.sep, "/")
        if name in found:
            raise DatasetError(f"{found[name]} and {path} are both named '{name}'; remove one")
        found[name] = Path(path)
    return found


def _walk(folder: Path) -> Iterator[str]:
    """Regular files below a folder, as `walk` finds them.

    Raises:
        DatasetError: If a folder cannot be read.
    """
    try:
        yield from (entry.path for entries in walk(folder) for entry in entries if irregular_entry(entry) is None)
    except OSError as error:
        raise DatasetError(
            f"{error.filename} cannot be read ({error.strerror}); change its permissions, or move it away"
        ) from None


def _read_listing(path: Path) -> list[str]:
    return list(dict.fromkeys(line.split()[0] for line in read_lines(path)))


def _complain(names: list[str], what: str, where: Path, hint: str = "") -> None:
    if names:
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        count = f"{len(names):,} of the samples: " if len(names) > 1 else ""
        raise DatasetError(f"{count}{shown} {what} in {where}{hint}")
