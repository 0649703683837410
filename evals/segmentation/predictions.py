"""Label maps: as files that other programs read, as pictures that people read, and in folders that outlast a kill.

`journal.jsonl` says of each label map which file it was made of and how many bytes it has, so that an image that has
changed, or whose label map was damaged, is predicted again.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evals.segmentation.labels import palette
from evals.segmentation.layouts import CLASS_FILE
from evals.segmentation.run_folders import (
    LABELS,
    OVERLAYS,
    PREDICT,
    REMEDY,
    as_entry,
    check_owner,
    read_log_of_run,
    remove_run,
)
from heads.dense import IGNORE
from heads.dense.inference import Inference, predict
from heads.dense.segmenter import Segmenter
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import ImageError
from sail_encoder.io.files import replacing
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.runs import check_settings, write_run
from sail_encoder.io.threads import BackgroundWriter
from sail_encoder.pictures.colors import Color
from sail_encoder.pictures.overlays import photograph, relief
from sail_encoder.pictures.sheets import Panel, Sheet, draw_sheet

FAILURES, JOURNAL = "failures.csv", "journal.jsonl"
_WAITING = 16

_Item = tuple[str, ImageFile, dict[str, Any]]
"""The name of a label map, the image, and the image's line in the journal."""

_FINE = (24, 24)
"""Parts of a picture within which the edges of the image even out."""

_SIDE, _DPI = 420, 200
"""Longer side of a panel in pixels, and pixels per inch."""


def save_labels(labels: Array, names: Sequence[str], path: Path) -> None:
    """Writes a label map uint8 [height, width] as an index PNG, with the colors of the classes as its palette."""
    picture = Image.fromarray(labels)
    picture.putpalette(palette(names).flatten().tolist())
    save_picture(picture, path)


def overlay(image: Image.Image, labels: Array, names: Sequence[str]) -> Image.Image:
    """An image with the colors of the classes over it, clear where a pixel is background or does not count.

    A class has its own color, that of a legend, on average; only the edges of the image show through.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(names)] = palette(names)
    photo = np.asarray(image)
    painted = relief(colors[labels], photo, _FINE)
    return Image.fromarray(np.where(_is_clear(labels, names)[..., None], photo, painted))


Compared = tuple[str, Image.Image, Array, Array]
"""What is said of an image, the image, its mask, and what was predicted, both uint8 [height, width]."""


def save_comparisons(compared: Sequence[Compared], names: Sequence[str], path: Path, side: int = _SIDE) -> None:
    """Draws images, their masks and what was predicted side by side, with a legend of the classes in them.

    Args:
        compared: The images, one a row.
        names: Names of the classes.
        path: The picture to write.
        side: Longer side of an image in pixels.
    """
    rows = []
    for note, image, labels, predicted in compared:
        titled = {"image": image, "mask": overlay(image, labels, names), "predicted": overlay(image, predicted, names)}
        panels = [Panel(photograph(picture, side), title) for title, picture in titled.items()]
        rows.append([replace(panels[0], note=note), *panels[1:]])
    drawn = (classes for _, _, *both in compared for classes in both)
    draw_sheet(Sheet(rows, legend=legend_of(drawn, names)), path, _DPI)


def legend_of(label_maps: Iterable[Array], names: Sequence[str]) -> list[tuple[str, Color]]:
    """Names and colors of the classes that are drawn over an image, in any of several label maps [height, width]."""
    shown: set[int] = set()
    for labels in label_maps:
        shown.update(np.unique(labels[~_is_clear(labels, names)]).tolist())
    colors = palette(names).tolist()
    return [(names[index], (colors[index][0], colors[index][1], colors[index][2])) for index in sorted(shown)]


def _is_clear(labels: Array, names: Sequence[str]) -> Array:
    """Mask of the pixels where the image is left as it is."""
    has_background = names and names[0] == "background"
    return (labels == IGNORE) | (labels == 0) if has_background else labels == IGNORE


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture."""
    with replacing(path) as unfinished:
        picture.save(unfinished)


class LabelFolder:
    """Label maps and overlays of images, named after them.

    Args:
        folder: Where they go.
        classes: Names of the classes.
        overlays: Whether to draw overlays.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
    """

    def __init__(self, folder: Path, classes: Sequence[str], overlays: bool, exif_rotate: bool = False) -> None:
        self.folder = folder
        self.classes = classes
        self.overlays = overlays
        self.exif_rotate = exif_rotate
        self.failures: dict[str, str] = {}

    def claim(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Begins a run or goes on with one of the same settings.

        Raises:
            UserError: If label maps of other settings are there, or something else that is not to be overwritten.
        """
        check_owner(self.folder, PREDICT)
        if overwrite:
            names = [line["name"] for line in read_log_of_run(self.folder / JOURNAL, as_entry)]
            pictures = (f"{kind}/{name}.png" for name in names for kind in (LABELS, OVERLAYS))
            remove_run(self.folder, PREDICT, pictures, (CLASS_FILE, FAILURES, JOURNAL))
        check_settings(self.folder, settings, PREDICT)
        write_run(self.folder, PREDICT, {"settings": settings})
        with replacing(self.folder / CLASS_FILE) as unfinished:
            unfinished.write_text("\n".join(self.classes) + "\n", encoding="utf-8")

    def fill(self, segmenter: Segmenter, inference: Inference, images: Sequence[ImageFile]) -> tuple[int, int]:
        """Predicts the images that are missing or have changed.

        Returns:
            How many were done now, and how many cannot be read.
        """
        items = [(name, image, _entry(name, image)) for name, image in zip(_names(images), images, strict=True)]
        with LineLog(self.folder / JOURNAL, as_entry, REMEDY) as journal:
            known = {line["name"]: line for line in journal.read()}
            todo = [item for item in items if not self._is_done(item[2], known.get(item[0]))]
            self._predict(predict(segmenter, inference, todo, self._read), todo, journal)
        self._write_failures()
        return len(todo) - len(self.failures), len(self.failures)

    def _is_done(self, entry: dict[str, Any], known: dict[str, Any] | None) -> bool:
        name: str = entry["name"]
        label_map, overlay = self._label_map(name), self._overlay(name)
        if known is None or known != {**entry, "written": known["written"]} or not label_map.is_file():
            return False
        return label_map.stat().st_size == known["written"] and (not self.overlays or overlay.exists())

    def _predict(self, predictions: Iterable[Tensor], todo: Sequence[_Item], journal: LineLog) -> None:
        """Writes predictions in the background; of an image that cannot be read, nothing earlier is left."""
        progress = tqdm(zip(todo, predictions, strict=True), "predicting", len(todo), unit="img", disable=None)
        with ThreadPoolExecutor(1, "write") as pool:
            writer = BackgroundWriter(pool, _WAITING)
            for (name, image, entry), labels in progress:
                if image.key in self.failures:
                    for path in (self._label_map(name), self._overlay(name)):
                        path.unlink(missing_ok=True)
                    continue
                writer.submit(self._write, name, image, labels.cpu().numpy(), entry, journal)
            writer.drain()

    def _label_map(self, name: str) -> Path:
        return self.folder / LABELS / f"{name}.png"

    def _overlay(self, name: str) -> Path:
        return self.folder / OVERLAYS / f"{name}.png"

    def _read(self, item: _Item) -> Image.Image:
        """The image, or a single pixel in place of one that cannot be read, whose label is thrown away."""
        image = item[1]
        try:
            return read_image(image.open(), self.exif_rotate)[0]
        except ImageError as error:
            self.failures[image.key] = error.reason
        except OSError as error:
            self.failures[image.key] = str(error)
        return Image.new("RGB", (1, 1))

    def _write(self, name: str, image: ImageFile, labels: Array, entry: dict[str, Any], journal: LineLog) -> None:
        if self.overlays:
            upright, _ = read_image(image.open(), self.exif_rotate)
            save_picture(overlay(upright, labels, self.classes), self._overlay(name))
        save_labels(labels, self.classes, self._label_map(name))
        journal.append({**entry, "written": self._label_map(name).stat().st_size})

    def _write_failures(self) -> None:
        if not self.failures:
            (self.folder / FAILURES).unlink(missing_ok=True)
            return
        with (
            replacing(self.folder / FAILURES) as unfinished,
            unfinished.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow(["path", "reason"])
            table.writerows(sorted(self.failures.items()))


def _names(images: Sequence[ImageFile]) -> list[str]:
    """Names without suffix, so that label maps pair up with images; with it where another image has that name."""
    stems = [os.path.splitext(image.key)[0] for image in images]
    times = Counter([*stems, *(image.key for image in images)])
    return [stem if times[stem] == 1 else image.key for stem, image in zip(stems, images, strict=True)]


def _entry(name: str, image: ImageFile) -> dict[str, Any]:
    """The line of the journal by which a changed image is noticed."""
    status = image.with_status()
    return {"name": name, "path": image.key, "size": status.size, "changed": status.modified or 0}
