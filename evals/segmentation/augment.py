"""Augmentation as published segmentation protocols have it: scale jitter, crop, flip, photometric distortion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance

from heads.dense import IGNORE, PADDING
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Resize, Size

ColorRecipe = Literal["mmseg", "dinov3"]
Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels."""

_CROP_TRIES = 10
_MOST_OF_A_CROP = 0.75
"""A crop is drawn again where one class has more of its labelled pixels than this."""


@dataclass(frozen=True)
class Augmentation:
    """Way from a training image to a crop, as in mmsegmentation's pipelines.

    Attributes:
        crop: (height, width) of the crops in pixels.
        resize: The size before jitter; its limit of tokens does not apply, because crops are small.
        jitter: Lowest and highest factor on the size.
        flip: Whether every second crop is mirrored.
        distort: Whether brightness, contrast, saturation and hue are varied.
        colors: Whose way of varying them.
    """

    crop: Size
    resize: Resize = field(default_factory=Resize)
    jitter: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    distort: bool = True
    colors: ColorRecipe = "mmseg"

    def __call__(self, image: Image.Image, labels: Array, rng: Generator) -> tuple[Array, Array]:
        """Draws one crop.

        Args:
            image: 8-bit RGB.
            labels: uint8 [height, width].
            rng: Decides everything that is random.

        Returns:
            Pixels uint8 [*crop, 3] and labels uint8 [*crop]; beyond the edge of a small image the pixels are
            `PADDING` and the labels `IGNORE`.
        """
        size = self._jittered_size((image.height, image.width), rng)
        box, target = choose_crop(labels, size, self.crop, rng)
        window = _window(box, size, (image.height, image.width))
        pixels = np.asarray(image.resize((box[3] - box[1], box[2] - box[0]), Image.Resampling.BILINEAR, window))
        if self.flip and rng.random() < 0.5:
            pixels, target = pixels[:, ::-1], target[:, ::-1]
        if self.distort:
            pixels = distort_colors(pixels, rng, self.colors)
        return pad(pixels, self.crop, PADDING), pad(target, self.crop, IGNORE)

    def _jittered_size(self, size: Size, rng: Generator) -> Size:
        return self.resize.pixels(size, rng.uniform(*self.jitter))


def choose_crop(labels: Array, size: Size, crop: Size, rng: Generator, step: int = 1) -> tuple[Box, Array]:
    """Draws a box in which no class has almost everything, if there is one among the first few.

    Args:
        labels: uint8 [height, width] of the original image.
        size: (height, width) of the resized image.
        crop: (height, width) of the box; where the image is smaller, the box is.
        rng: Draws the place.
        step: Boxes begin at multiples of it.

    Returns:
        (top, left, bottom, right) in the resized image, and the labels there.
    """
    mask = Image.fromarray(np.ascontiguousarray(labels))
    height, width = (min(side, limit) for side, limit in zip(crop, size, strict=True))
    for _ in range(_CROP_TRIES):
        top = int(rng.integers((size[0] - height) // step + 1)) * step
        left = int(rng.integers((size[1] - width) // step + 1)) * step
        box = (top, left, top + height, left + width)
        window = _window(box, size, (labels.shape[0], labels.shape[1]))
        target = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST, window))
        counts = np.bincount(target[target != IGNORE], minlength=2)
        if np.count_nonzero(counts) > 1 and counts.max() < _MOST_OF_A_CROP * counts.sum():
            break
    return box, target


def _window(box: Box, resized: Size, original: Size) -> tuple[float, float, float, float]:
    """A box of the resized image as Pillow's (left, top, right, bottom) of the original, so that only what is kept is
    resized.
    """
    down, across = original[0] / resized[0], original[1] / resized[1]
    top, left, bottom, right = box
    return left * across, top * down, min(right * across, original[1]), min(bottom * down, original[0])


def pad(values: Array, size: Size, value: int | tuple[int, ...]) -> Array:
    """Fills [height, width, ...] up to a size, at the bottom and at the right."""
    if values.shape[:2] == size:
        return np.ascontiguousarray(values)
    padded = np.empty((*size, *values.shape[2:]), values.dtype)
    padded[:] = value
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def distort_colors(pixels: Array, rng: Generator, colors: ColorRecipe = "mmseg") -> Array:
    """Varies brightness (+-32 levels), contrast and saturation (0.5 to 1.5 times) and hue, each in every second image,
    the contrast before or after the colors: SSD's distortion (arXiv 1512.02325) with the values of mmsegmentation, or
    with those of DINOv3's code, which turns the hue by up to half of the circle where mmsegmentation stops at a tenth,
    and saturates by mixing with gray.
    """
    contrast_last = rng.random() < 0.5
    levels = np.arange(256, dtype=np.float32)
    if rng.random() < 0.5:
        levels = levels + rng.uniform(-32, 32)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    first = _as_levels(levels if contrast_last else levels.clip(0, 255) * contrast)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    turn = _TURNS[colors](rng) if rng.random() < 0.5 else 0.0
    pixels = turn_hue(saturate(first[pixels], saturation, colors), turn)
    return _as_levels(np.arange(256) * contrast)[pixels] if contrast_last and contrast != 1 else pixels


_TURNS: dict[ColorRecipe, Callable[[Generator], float]] = {
    "mmseg": lambda rng: int(rng.integers(-18, 18)) / 180,
    "dinov3": lambda rng: rng.uniform(-0.5, 0.5),
}
"""By how much of the full circle a hue is turned."""


def saturate(pixels: Array, factor: float, colors: ColorRecipe) -> Array:
    """Strengthens colors by a factor: their saturation (`mmseg`), or their distance from gray (`dinov3`)."""
    if factor == 1:
        return pixels
    image = Image.fromarray(pixels)
    if colors == "dinov3":
        return np.asarray(ImageEnhance.Color(image).enhance(factor))
    hue, strength, value = image.convert("HSV").split()
    strength = strength.point(_as_levels(np.arange(256) * factor).tolist())
    return np.asarray(Image.merge("HSV", (hue, strength, value)).convert("RGB"))


def turn_hue(pixels: Array, turn: float) -> Array:
    """Turns hues by a share of the full circle, to the nearest of Pillow's 256 hues."""
    if not turn:
        return pixels
    hue, strength, value = Image.fromarray(pixels).convert("HSV").split()
    hue = hue.point([round(level + 256 * turn) % 256 for level in range(256)])
    return np.asarray(Image.merge("HSV", (hue, strength, value)).convert("RGB"))


def _as_levels(values: Array) -> Array:
    """Levels from 0 to 255, rounded down as mmsegmentation and DINOv3 do."""
    return values.clip(0, 255).astype(np.uint8)
