"""Scores and colors of patches at the size of a picture, alone or over the photograph."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Size

_RELIEF = 0.55
"""How strongly the photograph shows through colors that stand for scores."""

_FAINT = 0.8
"""How much white is in what takes no attention."""


Photo = tuple[str, Image.Image]
"""Name that stands above an image, and the image in 8-bit RGB."""


def fit(size: Size, side: int) -> Size:
    """(height, width) of a picture whose longer side is `side` pixels."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def photograph(image: Image.Image, side: int) -> Array:
    """An image with its longer side at `side` pixels, uint8 [height, width, 3]."""
    height, width = fit((image.height, image.width), side)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def enlarge(values: Array, size: Size, smooth: bool) -> Array:
    """Values of patches at the size of a picture.

    Args:
        values: [nh, nw] or [nh, nw, channels].
        size: (height, width) of the picture.
        smooth: Whether to interpolate between the centres of patches; otherwise each pixel has the value of the patch
            that covers its centre.

    Returns:
        float32 [height, width] or [height, width, channels].
    """
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    layers = np.atleast_3d(values.astype(np.float32))
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(layers[..., index])).resize(size[::-1], how))
        for index in range(layers.shape[-1])
    ]
    return np.stack(resized, -1).reshape(*size, *values.shape[2:])


def to_bytes(shares: Array) -> Array:
    """Shares in [0, 1] as uint8."""
    return (shares.clip(0, 1) * 255).round().astype(np.uint8)


def relief(colors: Array, photo: Array, grid: Size) -> Array:
    """Colors that stand for scores, with the edges of the photograph in them.

    What is blended with a photograph cannot be read off a color bar, since dark things darken it. So only what the
    photograph's gray differs by from its surroundings is added: within a patch it evens out, and the mean color is that
    of the bar.

    Args:
        colors: uint8 [height, width, 3].
        photo: uint8 of the same shape.
        grid: Rows and columns of patches, which say how wide surroundings are.
    """
    gray = Image.fromarray(photo).convert("L")
    radius = max(photo.shape[0] / grid[0], photo.shape[1] / grid[1]) / 2
    around = gray.filter(ImageFilter.GaussianBlur(radius))
    edges = (np.asarray(gray, np.float32) - np.asarray(around, np.float32))[..., None]
    return (colors + _RELIEF * edges).clip(0, 255).round().astype(np.uint8)


def blend(photo: Array, colors: Array, strength: Array | float) -> Array:
    """A photograph with colors over it, uint8 [height, width, 3].

    Args:
        photo: uint8 [height, width, 3].
        colors: uint8 of the same shape.
        strength: From 0, only the photograph, to 1, only the colors; one number, or [height, width].
    """
    share = np.asarray(strength, np.float32)
    share = share[..., None] if share.ndim else share
    return (photo + share * (colors.astype(np.float32) - photo)).round().astype(np.uint8)


def faint(photo: Array) -> Array:
    """A photograph in light gray, as a ground that takes no attention; uint8 [height, width, 3]."""
    gray = np.repeat(np.asarray(Image.fromarray(photo).convert("L"))[..., None], 3, 2)
    return blend(gray, np.full_like(gray, 255), _FAINT)


def pixel_box(box: Sequence[float], size: Size, image_size: Size) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of a picture that a patch covers, right and bottom exclusive.

    Args:
        box: The patch in pixels of the image, see `Geometry.patch_box`.
        size: (height, width) of the picture.
        image_size: Those of the image.
    """
    across, down = size[1] / image_size[1], size[0] / image_size[0]
    # A pixel is the patch's if its centre is.
    left, top, right, bottom = (
        int(np.ceil(edge * scale - 0.5)) for edge, scale in zip(box, (across, down, across, down), strict=True)
    )
    return left, top, max(right, left + 1), max(bottom, top + 1)
