"""Label maps as files that other programs read, and as pictures that people read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evals.segmentation.labels import palette
from heads.dense import IGNORE
from sail_encoder.images.decoding import Array
from sail_encoder.io.files import replacing

OPACITY = 0.6
_GAP = 8


def save_labels(labels: Array, names: Sequence[str], path: Path) -> None:
    """Writes a label map uint8 [height, width] as an index PNG, with the colors of the classes as its palette."""
    picture = Image.fromarray(labels)
    picture.putpalette(palette(names).flatten().tolist())
    save_picture(picture, path)


def overlay(image: Image.Image, labels: Array, names: Sequence[str]) -> Image.Image:
    """An image with the colors of the classes over it, clear where a pixel does not count."""
    colors = np.zeros((256, 3), np.float32)
    colors[: len(names)] = palette(names)
    pixels = np.asarray(image, np.float32)
    strength = np.where(labels == IGNORE, 0, OPACITY)[..., None]
    return Image.fromarray((pixels + strength * (colors[labels] - pixels)).round().astype(np.uint8))


def compare(image: Image.Image, labels: Array, predicted: Array, names: Sequence[str]) -> Image.Image:
    """An image, what is there and what was predicted, side by side."""
    parts = [image, overlay(image, labels, names), overlay(image, predicted, names)]
    canvas = Image.new("RGB", (len(parts) * (image.width + _GAP) - _GAP, image.height), "white")
    for index, part in enumerate(parts):
        canvas.paste(part, (index * (image.width + _GAP), 0))
    return canvas


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture."""
    with replacing(path) as unfinished:
        picture.save(unfinished)
