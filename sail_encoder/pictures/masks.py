"""Masks over a photograph."""

import colorsys

import numpy as np

from sail_encoder.images.decoding import Array

_OPACITY = 0.55
_GOLDEN_SECTION = 0.618034
"""Share of the circle of hues between two masks, so that neighbours differ however many there are."""


def mask_color(index: int) -> tuple[int, int, int]:
    """Color of a mask by its number, red for the first, as (red, green, blue) from 0 to 255."""
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_SECTION % 1, 0.9, 1)
    return round(red * 255), round(green * 255), round(blue * 255)


def overlay_masks(photo: Array, masks: Array) -> Array:
    """A photograph with masks in colors over it; where they overlap, the last one counts most.

    Args:
        photo: uint8 [height, width, 3].
        masks: bool [q, height, width].

    Returns:
        uint8 [height, width, 3].
    """
    pixels = photo.astype(np.float32)
    for index, mask in enumerate(masks):
        pixels[mask] += _OPACITY * (np.array(mask_color(index), np.float32) - pixels[mask])
    return pixels.round().astype(np.uint8)
