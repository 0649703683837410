"""Masks as COCO stores them: polygons, and run lengths as numbers or as text.

Pixels are those that COCO's own tools give, also where a polygon crosses them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.errors import DatasetError
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Size

_SCALE = 5
"""Steps per pixel in which the outline of a polygon is followed."""

_FARTHEST = 100
"""How far a polygon may reach beyond an image, in sides of it; following it takes as many steps."""

_FIRST, _BITS, _MORE, _SIGN = 48, 5, 32, 16
"""Code of the character for zero, and bits per character: value, whether more follow, and in the last one the sign."""


def decode_mask(segmentation: Any, size: Size) -> Array:
    """Decodes the field `segmentation` of an annotation.

    Args:
        segmentation: Polygons, each a list of x and y in turn, or `size` and `counts`.
        size: (height, width) of the image.

    Returns:
        bool [height, width].

    Raises:
        DatasetError: If it is something else, or of another size.
    """
    try:
        if isinstance(segmentation, Mapping):
            if tuple(segmentation["size"]) != size:
                raise ValueError(f"its size is {list(segmentation['size'])}, that of the image {list(size)}")
            counts = segmentation["counts"]
            return decode_runs(read_counts(counts) if isinstance(counts, str) else counts, size)
        masks = [fill_polygon(polygon, size) for polygon in segmentation]
        return np.any(masks, axis=0) if masks else np.zeros(size, bool)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise DatasetError(f"a mask cannot be decoded ({error})") from None


def decode_runs(counts: Sequence[int], size: Size) -> Array:
    """Mask from the lengths of runs outside and inside in turn, down one column after the other."""
    lengths = np.asarray(counts, np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise ValueError(f"its runs do not make up {size[0]} x {size[1]} pixels")
    inside = np.arange(len(lengths)) % 2 == 1
    mask: Array = np.repeat(inside, lengths).reshape(size[1], size[0]).T
    return mask


def read_counts(text: str) -> list[int]:
    """Run lengths from text: from the fourth on, the difference to the one before the last."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text.encode():
        digit = character - _FIRST
        value |= (digit & (_MORE - 1)) << shift
        shift += _BITS
        if digit & _MORE:
            continue
        if digit & _SIGN:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts


def fill_polygon(polygon: Sequence[float], size: Size) -> Array:
    """Mask of a polygon [x0, y0, x1, y1, ...] in pixels.

    Its outline is followed in fifths of pixels. Where it passes the middle of a column, inside and outside change
    below that point.
    """
    height, width = size
    corners = np.trunc(_SCALE * np.asarray(polygon, np.float64).reshape(-1, 2) + 0.5)
    if not len(corners) or not np.isfinite(corners).all():
        raise ValueError("a polygon has no points")
    if (reach := abs(corners).max() / _SCALE) > _FARTHEST * max(size):
        raise ValueError(f"a polygon reaches {reach:g} pixels, the image has {height} x {width}")
    outline = np.concatenate([_follow(*edge) for edge in zip(corners, np.roll(corners, -1, axis=0), strict=True)])
    before, after = outline[:-1], outline[1:]
    crossed = before[:, 0] != after[:, 0]
    lower = np.minimum(before, after)[crossed]
    column = (lower[:, 0] + 0.5) / _SCALE - 0.5
    row = np.ceil(((lower[:, 1] + 0.5) / _SCALE - 0.5).clip(0, height))
    is_middle = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    changes = (column * height + row)[is_middle].astype(np.int64)
    toggles = np.bincount(changes, minlength=height * width + 1)[: height * width]
    mask: Array = (toggles.cumsum() % 2 == 1).reshape(width, height).T
    return mask


def _follow(start: Array, end: Array) -> Array:
    """Whole points [n, 2] along an edge, one for each step in the direction in which it is longer."""
    spans = np.abs(end - start)
    along = 0 if spans[0] >= spans[1] else 1
    # Rounding is done from the lower end, whichever way the edge goes.
    low, high = (start, end) if start[along] <= end[along] else (end, start)
    steps = np.arange(spans[along] + 1)
    slope = (high[1 - along] - low[1 - along]) / max(spans[along], 1)
    points = np.empty((len(steps), 2))
    points[:, along] = low[along] + steps
    points[:, 1 - along] = np.trunc(low[1 - along] + slope * steps + 0.5)
    return points if low is start else points[::-1]
