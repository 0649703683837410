"""Where a token sits: the (time, row, column) positions that SAIL's rotary embedding turns with.

An image counts as one step forward in reading order. `<vision>` takes the next free position `p`, the patch in row `r`
and column `c` sits at `(p + 1, p + 1 + r, p + 1 + c)`, `</vision>` follows at `p + max(rows, columns) + 1`, and text
goes on from there with three equal numbers. The time row is kept for interchange; the model turns with the others.
"""

from functools import lru_cache

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of patches."""


def as_grids(image_grid_hw: Tensor) -> list[Grid]:
    """Rows and columns of each image, from int [images, 2]."""
    return [(rows, columns) for rows, columns in image_grid_hw.tolist()]


def patch_coordinates(grids: list[Grid]) -> Tensor:
    """Row and column of every patch of the images, in reading order, as int64 [2, total patches]."""
    axes = [torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij") for rows, columns in grids]
    return torch.cat([torch.stack((row.flatten(), column.flatten())) for row, column in axes], dim=1)


@lru_cache(maxsize=4096)
def image_positions(rows: int, columns: int) -> Tensor:
    """Positions of `<vision>`, the patches and `</vision>` of one image, as int64 [3, rows * columns + 2]."""
    patches = patch_coordinates([(rows, columns)]) + 1
    time = torch.ones_like(patches[:1])
    start, end = torch.zeros(3, 1, dtype=torch.long), torch.full((3, 1), max(rows, columns) + 1)
    return torch.cat((start, torch.cat((time, patches)), end), dim=1)


def prefix_positions(grids: list[Grid]) -> Tensor:
    """Positions of image-only prefixes, each starting at zero, one after the other.

    Args:
        grids: Rows and columns of each image.

    Returns:
        int64 [3, total patches + 2 * images]: time, row, column.
    """
    return torch.cat([image_positions(rows, columns) for rows, columns in grids], dim=1)


def text_and_image_positions(
    input_ids: Tensor, grids: list[Grid], image_token_id: int, vision_end_token_id: int, attention_mask: Tensor | None
) -> Tensor:
    """Positions of token sequences that hold images.

    Args:
        input_ids: int64 [batch, length].
        grids: Rows and columns of the images in the order in which they appear.
        image_token_id: Id of `<vpatch>`.
        vision_end_token_id: Id of `</vision>`.
        attention_mask: [batch, length], zero at padding; padding takes no position.

    Returns:
        int64 [3, batch, length]: time, row, column.
    """
    device = input_ids.device
    steps = torch.ones_like(input_ids, dtype=torch.long) if attention_mask is None else attention_mask.long()
    is_patch = input_ids == image_token_id
    steps = steps.masked_fill(is_patch, 0)
    spans = torch.tensor([max(grid) + 1 for grid in grids], device=device)
    steps = steps.masked_scatter(input_ids == vision_end_token_id, spans) if grids else steps

    base = (steps.cumsum(dim=1) - 1).clamp_min(0)
    positions = base.expand(3, -1, -1).clone()
    if grids:
        coordinates = patch_coordinates(grids).to(device)
        offsets = torch.cat((torch.zeros_like(coordinates[:1]), coordinates)) + 1
        positions[:, is_patch] += offsets
    return positions
