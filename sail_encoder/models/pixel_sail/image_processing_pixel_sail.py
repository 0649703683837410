"""Turns images into patches as Pixel-SAIL does, as a transformers image processor."""

import math
from typing import Any

from transformers.image_utils import SizeDict

from sail_encoder.images.resizing import Size, limit_tokens
from sail_encoder.models.sail.image_processing_sail import SailImageProcessor, SailImageProcessorKwargs

LONGEST_SIDE = 1024
"""Pixels that the longer side of an image is brought down to, as published."""


class PixelSailImageProcessorKwargs(SailImageProcessorKwargs, total=False):  # type: ignore[call-arg]
    """Options of `PixelSailImageProcessor` beyond those of `SailImageProcessor`."""

    longest_side: int


class PixelSailImageProcessor(SailImageProcessor):
    """A `SailImageProcessor` that also limits the longer side of an image.

    Args:
        longest_side: Pixels of the longer side at most.
        kwargs: Options of `SailImageProcessor`; `max_tokens` holds beside the limit.
    """

    valid_kwargs = PixelSailImageProcessorKwargs

    patch_size = 16
    longest_side = LONGEST_SIDE

    def _grid_options(self) -> dict[str, Any]:
        return {**super()._grid_options(), "longest_side": self.longest_side}

    @staticmethod
    def _grid(
        image_size: Size,
        size: SizeDict | None,
        patch_size: int,
        max_tokens: int,
        longest_side: int = LONGEST_SIDE,
        **options: Any,
    ) -> Size:
        if size:
            return SailImageProcessor._grid(image_size, size, patch_size, max_tokens, **options)
        return limit_tokens(*limited_grid(image_size, patch_size, longest_side), max_tokens)


def limited_grid(size: Size, patch_size: int, longest_side: int) -> Size:
    """The grid that Pixel-SAIL's published preprocessing gives, at least one patch on each side.

    The longer side grows to a whole number of patches, or is brought down to what the limit holds of them; the shorter
    follows in proportion and grows to a whole number.

    Args:
        size: Height and width of the image in pixels.
        patch_size: Side of a patch in pixels.
        longest_side: Pixels of the longer side at most.

    Returns:
        Rows and columns.
    """
    long, short = max(size), min(size)
    long_patches = max(1, min(math.ceil(long / patch_size), longest_side // patch_size))
    short_patches = max(1, math.ceil(int(long_patches * patch_size * short / long) / patch_size))
    return (long_patches, short_patches) if size[0] >= size[1] else (short_patches, long_patches)
