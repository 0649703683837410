"""Patches: an image cut into squares, channel first within each, in reading order."""

from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def patchify(pixels: Array, patch_size: int) -> Array:
    """[rows * p, columns * p, 3] -> [rows * columns, 3 * p * p], channel first within a patch."""
    # Without einops, whose first calls fail where several threads make them at once: each looks for its backend.
    p, rows, columns = patch_size, pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    squares = pixels.reshape(rows, p, columns, p, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(squares.reshape(rows * columns, 3 * p * p))


def patchify_batch(images: "Tensor", patch_size: int) -> tuple["Tensor", Size]:
    """Cuts images of one size into patches.

    Args:
        images: [batch, 3, rows * patch_size, columns * patch_size].
        patch_size: Side of a patch in pixels.

    Returns:
        The patches [batch * rows * columns, 3 * patch_size**2], channel first within a patch, and (rows, columns).

    Raises:
        UserError: If patches do not tile the images.
    """
    p, shape = patch_size, tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] % p or shape[3] % p:
        raise UserError(f"a batch of shape {shape} cannot be cut into patches; pass [n, 3, {p}*a, {p}*b]")
    return rearrange(images, "n c (r y) (k x) -> (n r k) (c y x)", y=p, x=p), (shape[2] // p, shape[3] // p)
