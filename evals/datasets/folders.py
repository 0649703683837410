"""Image folders, and the layout of ImageNet-1k."""

import csv
import io
import re
import tarfile
from pathlib import Path

import numpy as np

from evals.datasets.labelled import LabelledImages, parts_and_classes
from evals.errors import DatasetError
from sail_encoder.images.sources import IMAGE_SUFFIXES, list_images
from sail_encoder.io.files import read_text

SYNSET = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12"
SYNSET_LISTS = ("imagenet_2012_validation_synset_labels.txt", "val_synsets.txt", "LOC_val_solution.csv", "val.txt")
"""Files beside the images that may name the synset of each validation image."""


def image_folder(folder: Path) -> LabelledImages:
    """Images in folders named after their class, which may lie in folders `train`, `val` and `test`."""
    listing = list_images([str(folder)])
    keys = [image.key for image in listing.images]
    pairs = parts_and_classes(keys, "name a table with the columns path and label")
    return LabelledImages(
        folder.name, listing, keys, np.array([name for _, name in pairs]), [part for part, _ in pairs]
    )


def is_imagenet(folder: Path) -> bool:
    """Tells whether training images are in folders of synsets, and validation images in none."""
    train, val = folder / "train", folder / "val"
    if not (train.is_dir() and val.is_dir()):
        return False
    synsets = any(SYNSET.fullmatch(entry.name) for entry in train.iterdir())
    return synsets and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in val.iterdir())


def imagenet(folder: Path, labels: Path | None = None) -> LabelledImages:
    """The layout of ImageNet-1k: `train/n01440764/*.JPEG`, and `val/ILSVRC2012_val_00000001.JPEG` and so on.

    Args:
        folder: The folder of `train` and `val`.
        labels: The devkit (a folder or .tar.gz), or a list of the synsets of the validation images, one per line in
            their order, `name synset` a line, or the LOC_val_solution.csv of Kaggle. Looked for beside the images
            where left out.

    Raises:
        DatasetError: If the labels of the validation images are not found, or do not fit.
    """
    train, val = (list_images([str(folder / part)]) for part in ("train", "val"))
    names = [image.key.rsplit("/", 1)[-1] for image in val.images]
    synsets = _validation_synsets(_find_labels(folder, labels), names)
    listing = list_images([str(folder / "train"), str(folder / "val")])
    by_path = {image.path: synset for image, synset in zip(val.images, synsets, strict=True)}
    classes = {image.path: Path(image.path).parent.name for image in train.images}
    targets = [by_path.get(image.path) or classes[image.path] for image in listing.images]
    parts = ["val" if image.path in by_path else "train" for image in listing.images]
    return LabelledImages("imagenet1k", listing, [image.key for image in listing.images], np.array(targets), parts)


def _find_labels(folder: Path, labels: Path | None) -> Path:
    if labels is not None:
        return labels
    for beside in (folder, folder.parent):
        for name in (DEVKIT, f"{DEVKIT}.tar.gz", *SYNSET_LISTS):
            if (beside / name).exists():
                return beside / name
    raise DatasetError(
        f"{folder}/val has no folders of classes, and neither {DEVKIT} nor a list of synsets is beside it; "
        "give one of them as --labels"
    )


def _validation_synsets(labels: Path, names: list[str]) -> list[str]:
    """The synset of each validation image, by name or by position."""
    if labels.is_dir() or labels.name.endswith((".tar.gz", ".tgz")):
        listed = _devkit_synsets(labels)
    else:
        try:
            lines = read_text(labels).split("\n")
        except OSError as error:
            raise DatasetError(f"{labels} cannot be read ({error.strerror})") from None
        if labels.suffix == ".csv":
            rows = csv.reader(lines)
            first_words = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
            named = {name: word for name, word in first_words.items() if SYNSET.fullmatch(word)}
            return _by_name(named, names, labels)
        words = [line.split() for line in lines if line.strip()]
        _check_synsets([pair[-1] for pair in words], labels)
        if all(len(pair) == 2 for pair in words):
            return _by_name({Path(name).stem: synset for name, synset in words}, names, labels)
        listed = [word[0] for word in words]
    if len(listed) != len(names):
        raise DatasetError(f"{labels} has {len(listed)} labels for {len(names)} validation images")
    order = np.argsort(names).argsort()
    return [listed[position] for position in order]


def _check_synsets(listed: list[str], labels: Path) -> None:
    wrong = [synset for synset in listed if not SYNSET.fullmatch(synset)]
    if wrong:
        raise DatasetError(
            f"{labels} has '{wrong[0]}' where a synset such as n01440764 is needed; give the devkit or a list of "
            "synsets as --labels"
        )


def _by_name(named: dict[str, str], names: list[str], labels: Path) -> list[str]:
    unknown = [name for name in names if Path(name).stem not in named]
    if unknown:
        raise DatasetError(f"{labels} does not name {len(unknown)} of the validation images, such as {unknown[0]}")
    return [named[Path(name).stem] for name in names]


def _devkit_synsets(devkit: Path) -> list[str]:
    """The synsets of the validation images, in the order of their names, from the devkit of the challenge."""
    from scipy.io import loadmat

    table = loadmat(io.BytesIO(_devkit_file(devkit, "meta.mat")), squeeze_me=True)["synsets"]
    synsets: dict[int, str] = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(table)}
    truth = _devkit_file(devkit, "ILSVRC2012_validation_ground_truth.txt").decode().split()
    return [synsets[int(number)] for number in truth]


def _devkit_file(devkit: Path, name: str) -> bytes:
    """The content of `data/NAME`."""
    try:
        if devkit.is_dir():
            return next(path for path in (devkit / "data" / name, devkit / name) if path.exists()).read_bytes()
        with tarfile.open(devkit) as archive:
            member = next(member for member in archive if member.name.endswith(f"data/{name}"))
            content = archive.extractfile(member)
            return content.read() if content else b""
    except (StopIteration, tarfile.TarError, OSError):
        raise DatasetError(f"{devkit} is not the devkit of ImageNet-1k: it has no data/{name}") from None
