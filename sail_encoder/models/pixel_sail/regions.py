"""Regions of an image that a question is about: masks and boxes, and the patches that they cover."""

import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError
from sail_encoder.models.pixel_sail.tokens import VISUAL_PROMPTS

Region: TypeAlias = str | os.PathLike[str] | Array | Sequence[float]
"""A mask, as an array [height, width] or the path of a picture, or a box (x0, y0, x1, y1) in pixels or as text."""

_FORMS = "a box x0,y0,x1,y1 in pixels, the path of a mask, or a mask [height, width]"


def read_region(region: Region, image_size: Size) -> Array:
    """Reads a region.

    Args:
        region: A mask, inside where it is not zero, or a box, of which x1 and y1 lie just outside.
        image_size: (height, width) of the image that it is of.

    Returns:
        bool [height, width].

    Raises:
        ImageError: If the picture of a mask cannot be read.
        UserError: If a mask has another size than the image, a box lies outside, or nothing is inside.
    """
    if isinstance(region, np.ndarray) and region.ndim == 2:
        return _check_mask(region != 0, "the mask", image_size)
    if isinstance(region, (str, os.PathLike)):
        path = os.fspath(region)
        if "," not in path or os.path.exists(path):
            pixels = np.asarray(read_image(path)[0])
            inside: Array = np.any(pixels, axis=2)
            return _check_mask(inside, path, image_size)
    return _fill_box(_read_box(region), image_size)


def _check_mask(mask: Array, name: str, image_size: Size) -> Array:
    if mask.shape != image_size:
        (height, width), (rows, columns) = image_size, mask.shape
        raise UserError(
            f"region {name} is {columns}x{rows} pixels, but the image {width}x{height}; give a mask of the image's size"
        )
    if not mask.any():
        raise UserError(f"region {name} is empty: it is zero everywhere; give a mask that is not zero inside")
    return mask


def _read_box(region: Region) -> tuple[float, ...]:
    numbers = os.fspath(region).split(",") if isinstance(region, (str, os.PathLike)) else region
    try:
        box = tuple(float(number) for number in numbers)
    except (TypeError, ValueError):
        box = ()
    if len(box) != 4 or not np.isfinite(box).all():
        named = f"of shape {list(region.shape)}" if isinstance(region, np.ndarray) else reprlib.repr(region)
        raise UserError(f"region {named} is not understood; give {_FORMS}")
    return box


def _fill_box(box: tuple[float, ...], image_size: Size) -> Array:
    height, width = image_size
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        named = ",".join(f"{number:g}" for number in box)
        raise UserError(
            f"region {named} is no box in an image of {width}x{height} pixels; x0 < x1 <= {width} and "
            f"y0 < y1 <= {height}, from 0"
        )
    mask = np.zeros(image_size, bool)
    # Every pixel that the box touches is inside, so that a thin box is not lost.
    mask[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    return mask


def covered_patches(mask: Array, grid: Size, patch_size: int) -> Array:
    """Patches of which at least one pixel is inside a mask, after resizing it like the image, to the nearest pixel.

    Args:
        mask: bool [height, width].
        grid: Rows and columns of patches.
        patch_size: Side of a patch in pixels.

    Returns:
        bool [rows, columns].
    """
    rows, columns = grid
    picture = Image.fromarray(mask.astype(np.uint8))
    resized = picture.resize((columns * patch_size, rows * patch_size), Image.Resampling.NEAREST)
    covered: Array = np.any(np.asarray(resized).reshape(rows, patch_size, columns, patch_size), axis=(1, 3))
    return covered


def number_patches(regions: Mapping[int, Array], grid: Size, patch_size: int) -> Array:
    """Number of the visual prompt of each patch; where regions overlap, that of the last of them.

    Args:
        regions: For each number its mask, bool [height, width].
        grid: Rows and columns of patches.
        patch_size: Side of a patch in pixels.

    Returns:
        int64 [rows * columns], -1 where there is none.

    Raises:
        UserError: If there is no prompt of a number, or a region is so small that resizing loses it.
    """
    numbers = np.full(grid, -1)
    for number, mask in regions.items():
        if not 0 <= number < len(VISUAL_PROMPTS):
            raise UserError(f"there is no visual prompt {number}; numbers go from 0 to {len(VISUAL_PROMPTS) - 1}")
        covered = covered_patches(mask, grid, patch_size)
        if not covered.any():
            raise UserError(
                f"the region of {VISUAL_PROMPTS[number]} vanishes when the image is resized; make it larger"
            )
        numbers[covered] = number
    return numbers.flatten()
