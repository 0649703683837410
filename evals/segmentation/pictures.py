"""Label maps as files that other programs read, and as pictures that people read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evals.segmentation.labels import palette
from heads.dense import IGNORE
from sail_encoder.images.decoding import Array
from sail_encoder.io.files import replacing
from sail_encoder.pictures.overlays import photograph, relief
from sail_encoder.pictures.sheets import Panel, Sheet, draw_sheet

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


def save_comparison(image: Image.Image, labels: Array, predicted: Array, names: Sequence[str], path: Path) -> None:
    """Draws an image, its mask and what was predicted side by side, with a legend of the classes in them."""
    shown = np.union1d(labels[~_is_clear(labels, names)], predicted[~_is_clear(predicted, names)])
    colors = palette(names).tolist()
    legend = [(names[index], (colors[index][0], colors[index][1], colors[index][2])) for index in shown]
    titled = {"image": image, "mask": overlay(image, labels, names), "predicted": overlay(image, predicted, names)}
    panels = [Panel(photograph(picture, _SIDE), title) for title, picture in titled.items()]
    draw_sheet(Sheet([panels], legend=legend), path, _DPI)


def _is_clear(labels: Array, names: Sequence[str]) -> Array:
    """Mask of the pixels where the image is left as it is."""
    has_background = names and names[0] == "background"
    return (labels == IGNORE) | (labels == 0) if has_background else labels == IGNORE


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture."""
    with replacing(path) as unfinished:
        picture.save(unfinished)
