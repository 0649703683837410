"""Augmentation as published segmentation protocols have it: scale jitter, crop, flip, photometric distortion."""

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from PIL import Image

from heads.dense import IGNORE
from sail_encoder.images.decoding import IMAGENET_MEAN, Array
from sail_encoder.images.resizing import Resize, Size

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels."""

PADDING = tuple(round(255 * channel) for channel in IMAGENET_MEAN)
"""Color beyond the edge of a small image: zero once it is normalised."""

_CROP_TRIES = 10
_MOST_OF_A_CROP = 0.75
"""A crop is drawn again where one class has more of its labelled pixels than this."""


@dataclass(frozen=True)
class Augmentation:
    """How a training image becomes a crop, as in mmsegmentation's pipelines.

    Attributes:
        crop: (height, width) of the crops in pixels.
        resize: The size before jitter; its limit of tokens does not apply, because crops are small.
        jitter: Lowest and highest factor on the size.
        flip: Whether every second crop is mirrored.
        distort: Whether brightness, contrast, saturation and hue are varied.
    """

    crop: Size
    resize: Resize = field(default_factory=Resize)
    jitter: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    distort: bool = True

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
            pixels = distort_colors(pixels, rng)
        return pad(pixels, self.crop, PADDING), pad(target, self.crop, IGNORE)

    def _jittered_size(self, size: Size, rng: Generator) -> Size:
        height, width = self.resize.pixels(size)
        factor = rng.uniform(*self.jitter)
        return max(1, round(height * factor)), max(1, round(width * factor))


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


def distort_colors(pixels: Array, rng: Generator) -> Array:
    """Varies brightness (+-32 levels), contrast and saturation (0.5 to 1.5 times) and hue (a tenth of the circle at
    most), each in every second image, the contrast before or after the colors: SSD's distortion (arXiv 1512.02325)
    with the values of mmsegmentation.
    """
    contrast_last = rng.random() < 0.5
    levels = np.arange(256, dtype=np.float32)
    if rng.random() < 0.5:
        levels = levels + rng.uniform(-32, 32)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    first = _as_levels(levels if contrast_last else levels.clip(0, 255) * contrast)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    turn = int(rng.integers(-18, 19)) / 180 if rng.random() < 0.5 else 0.0
    pixels = _shift_hsv(first[pixels], saturation, turn)
    return _as_levels(np.arange(256) * contrast)[pixels] if contrast_last and contrast != 1 else pixels


def _shift_hsv(pixels: Array, saturation: float, turn: float) -> Array:
    """Saturation times a factor, and hue by a share of the full circle."""
    if saturation == 1 and not turn:
        return pixels
    hue, strength, value = Image.fromarray(pixels).convert("HSV").split()
    hue = hue.point([round(level + 256 * turn) % 256 for level in range(256)])
    strength = strength.point(_as_levels(np.arange(256) * saturation).tolist())
    return np.asarray(Image.merge("HSV", (hue, strength, value)).convert("RGB"))


def _as_levels(values: Array) -> Array:
    return values.round().clip(0, 255).astype(np.uint8)
