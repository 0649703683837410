"""A folder of predicted label maps, which a killed run leaves in a state that the next one goes on from."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from evals.segmentation.data_source import CLASS_FILE
from evals.segmentation.pictures import overlay, save_labels, save_picture
from evals.segmentation.run_folder import LABELS, OVERLAYS, RUN
from heads.dense.inference import Inference, predict
from heads.dense.segmenter import Segmenter
from sail_encoder.errors import ImageError
from sail_encoder.extraction.threads import Behind
from sail_encoder.files import replacing, write_json
from sail_encoder.images import ImageFile
from sail_encoder.pixels import Array, read_image
from sail_encoder.store.store import check_settings

FAILURES = "failures.csv"
_WAITING = 16


class LabelFolder:
    """Label maps and overlays of images, named after them.

    Args:
        folder: Where they go.
        classes: Names of the classes.
        overlays: Whether to draw overlays.
        overwrite: Whether to predict again what is there already.
    """

    def __init__(self, folder: Path, classes: Sequence[str], overlays: bool, overwrite: bool) -> None:
        self.folder = folder
        self.classes = classes
        self.overlays = overlays
        self.overwrite = overwrite
        self.failures: dict[str, str] = {}

    def claim(self, settings: dict[str, Any]) -> None:
        """Begins a run or goes on with one of the same settings.

        Raises:
            UserError: If label maps of other settings are there.
        """
        if not self.overwrite:
            check_settings(self.folder, settings)
        write_json(self.folder / RUN, {"settings": settings})
        with replacing(self.folder / CLASS_FILE) as unfinished:
            unfinished.write_text("\n".join(self.classes) + "\n", encoding="utf-8")

    def fill(self, segmenter: Segmenter, inference: Inference, images: Sequence[ImageFile]) -> tuple[int, int]:
        """Predicts the images that are missing.

        Returns:
            How many were done now, and how many cannot be read.
        """
        named = list(zip(_names(images), images, strict=True))
        todo = [pair for pair in named if self.overwrite or not self._label_map(pair[0]).exists()]
        predictions = predict(segmenter, inference, todo, self._read)
        progress = tqdm(zip(todo, predictions, strict=True), "predicting", len(todo), unit="img", disable=None)
        with ThreadPoolExecutor(1, "write") as pool:
            behind = Behind(pool, _WAITING)
            for (name, image), labels in progress:
                if image.key not in self.failures:
                    behind.submit(self._write, name, image, labels.cpu().numpy())
            behind.drain()
        self._write_failures()
        return len(todo) - len(self.failures), len(self.failures)

    def _label_map(self, name: str) -> Path:
        return self.folder / LABELS / f"{name}.png"

    def _read(self, named: tuple[str, ImageFile]) -> Image.Image:
        """The image, or a single pixel in place of one that cannot be read, whose label is thrown away."""
        image = named[1]
        try:
            return read_image(image.open())[0]
        except ImageError as error:
            self.failures[image.key] = error.reason
        except OSError as error:
            self.failures[image.key] = str(error)
        return Image.new("RGB", (1, 1))

    def _write(self, name: str, image: ImageFile, labels: Array) -> None:
        """Writes the overlay first: the label map says that the image is done."""
        if self.overlays:
            drawn = overlay(read_image(image.open())[0], labels, self.classes)
            save_picture(drawn, self.folder / OVERLAYS / f"{name}.png")
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
    """Names without suffix, so that label maps pair up with images; with it where two images differ in it alone."""
    stems = [os.path.splitext(image.key)[0] for image in images]
    times = Counter(stems)
    return [stem if times[stem] == 1 else image.key for stem, image in zip(stems, images, strict=True)]
