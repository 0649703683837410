"""A folder of predicted label maps, which a killed run leaves in a state that the next one goes on from.

`journal.jsonl` says of each label map which file it was made of, so that an image that has changed is predicted again.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from evals.segmentation.pictures import overlay, save_labels, save_picture
from evals.segmentation.sources import CLASS_FILE
from heads.contract import DESCRIPTION, WEIGHTS
from heads.dense.inference import Inference, predict
from heads.dense.segmenter import Segmenter
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import ImageError, UserError
from sail_encoder.io.files import replacing
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.runs import RUN, check_settings, require_own, write_run
from sail_encoder.io.threads import BackgroundWriter
from sail_encoder.io.versions import versions

FAILURES, JOURNAL = "failures.csv", "journal.jsonl"
_WAITING = 16

_Item = tuple[str, ImageFile, dict[str, Any]]
"""The name of a label map, the image, and the image's line in the journal."""


class LabelFolder:
    """Label maps and overlays of images, named after them.

    Args:
        folder: Where they go.
        classes: Names of the classes.
        overlays: Whether to draw overlays.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
    """

    def __init__(self, folder: Path, classes: Sequence[str], overlays: bool, exif_rotate: bool = False) -> None:
        self.exif_rotate = exif_rotate
        self.folder = folder
        self.classes = classes
        self.overlays = overlays
        self.failures: dict[str, str] = {}

    def claim(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Begins a run or goes on with one of the same settings.

        Raises:
            UserError: If label maps of other settings are there, or something else that is not to be overwritten.
        """
        check_owner(self.folder, PREDICT)
        if overwrite:
            names = [line["name"] for line in read_names(self.folder, JOURNAL)]
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
        with LineLog(self.folder / JOURNAL) as journal:
            known = {line["name"]: line for line in journal.read()}
            todo = [item for item in items if not self._is_done(item[0], item[2] == known.get(item[0]))]
            self._predict(predict(segmenter, inference, todo, self._read), todo, journal)
        self._write_failures()
        return len(todo) - len(self.failures), len(self.failures)

    def _is_done(self, name: str, is_known: bool) -> bool:
        has_overlay = not self.overlays or self._overlay(name).exists()
        return is_known and has_overlay and self._label_map(name).exists()

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
                writer.submit(self._write, name, image, labels.cpu().numpy())
                writer.submit(journal.append, entry)
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

    def _write(self, name: str, image: ImageFile, labels: Array) -> None:
        if self.overlays:
            save_picture(
                overlay(read_image(image.open(), self.exif_rotate)[0], labels, self.classes), self._overlay(name)
            )
        save_labels(labels, self.classes, self._label_map(name))

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


RESULTS, CHECKPOINT, LOG = "results.json", "checkpoint.pt", "log.jsonl"
CURVES, IOU = "curves.png", "iou.png"
OVERLAYS, LABELS, PICTURES = "overlays", "labels", "pictures.jsonl"
TRAIN, EVAL, PREDICT = "segment train", "segment eval", "segment predict"
"""How run.json names the commands."""


def check_owner(folder: Path, command: str) -> None:
    """Makes sure that a folder holds nothing of a data set, or of another command, so that this one may write there.

    Args:
        folder: Where the command is to write.
        command: `TRAIN`, `EVAL` or `PREDICT`.

    Raises:
        UserError: If it holds a run of another command or program, or label maps, pictures or a head without a run.
    """
    if require_own(folder, command) is not None:
        return
    for name in (LABELS, OVERLAYS, CLASS_FILE, WEIGHTS):
        if (folder / name).exists():
            raise UserError(
                f"{folder} has {name} and no {RUN}, so it is no run of sail {command} and nothing is written there; "
                "use another --out"
            )


def check_run(folder: Path, settings: dict[str, Any]) -> None:
    """Compares settings with those of a run in the folder, if there is one.

    Raises:
        UserError: If one differs.
    """
    check_settings(folder, _as_json(settings), TRAIN)


def claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Begins a run in a folder, or goes on with one of the same settings.

    Raises:
        UserError: If a run with other settings is there, or something else is.
    """
    if overwrite:
        files = (CHECKPOINT, LOG, CURVES, IOU, WEIGHTS, DESCRIPTION, RESULTS, PICTURES)
        remove_run(folder, TRAIN, read_names(folder, PICTURES), files)
    check_run(folder, settings)
    write_run(folder, TRAIN, {"settings": _as_json(settings), "versions": versions()})


def remove_run(folder: Path, command: str, pictures: Iterable[str], files: Sequence[str]) -> None:
    """Deletes a run; what it did not write stays.

    Neither cached grids nor drawn scenes go, which any run may use.

    Args:
        folder: Where it is.
        command: Whose run it is.
        pictures: Label maps and overlays that it has written, relative to the folder.
        files: Names of its other files.

    Raises:
        UserError: If something else is in the folder.
    """
    check_owner(folder, command)
    if not (folder / RUN).exists():
        return
    for name in pictures:
        path = folder / name
        # A list that was tampered with does not reach beyond the folder.
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
    remove_empty(folder / LABELS, folder / OVERLAYS)
    for name in (*files, RUN):
        (folder / name).unlink(missing_ok=True)


def read_names(folder: Path, log: str) -> list[Any]:
    """Values of a log of a run's pictures, none where there is no such log."""
    if not (folder / log).is_file():
        return []
    with LineLog(folder / log) as lines:
        return lines.read()


def remove_empty(*folders: Path) -> None:
    """Removes folders that hold nothing but empty folders."""
    for folder in folders:
        nested = [Path(path) for path, _, _ in os.walk(folder, topdown=False)]
        for path in nested:
            with suppress(OSError):
                path.rmdir()


def _as_json(settings: dict[str, Any]) -> Any:
    """Settings as they are read back: tuples as lists."""
    return json.loads(json.dumps(settings))
