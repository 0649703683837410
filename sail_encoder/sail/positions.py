"""Where a token sits: the (time, row, column) positions that SAIL's rotary embedding rotates by.

An image counts as one step forward in reading order. `<vision>` takes the next free position `p`, the patch in row `r`
and column `c` sits at `(p + 1, p + 1 + r, p + 1 + c)`, `</vision>` follows at `p + max(rows, columns) + 1`, and text
goes on from there with three equal numbers. The time row is kept for interchange; the model rotates by the others.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sail_encoder.sail.configuration_sail import SailConfig

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


def prompt_positions(
    input_ids: Tensor, image_grid_hw: Tensor | None, attention_mask: Tensor | None, config: SailConfig
) -> Tensor:
    """Positions of prompts with or without images.

    Args:
        input_ids: int64 [batch, length].
        image_grid_hw: [images, 2], rows and columns of patches of the images in the order in which they appear.
        attention_mask: [batch, length], zero at padding; padding takes no position.
        config: Says which tokens stand for images.

    Returns:
        int64 [3, batch, length]: time, row, column.

    Raises:
        ValueError: If the images of the prompts do not have these grids.
    """
    if image_grid_hw is None or len(image_grid_hw) == 0:
        return _count(_steps(input_ids, attention_mask)).expand(3, -1, -1)
    _, patch_id, end_id = config.vision_token_ids
    return text_and_image_positions(input_ids, as_grids(image_grid_hw), patch_id, end_id, attention_mask)


def text_and_image_positions(
    input_ids: Tensor, grids: list[Grid], image_token_id: int, vision_end_token_id: int, attention_mask: Tensor | None
) -> Tensor:
    """Positions of prompts that hold images.

    Args:
        input_ids: int64 [batch, length].
        grids: Rows and columns of the images in the order in which they appear.
        image_token_id: Id of `<vpatch>`.
        vision_end_token_id: Id of `</vision>`.
        attention_mask: [batch, length], zero at padding; padding takes no position.

    Returns:
        int64 [3, batch, length]: time, row, column.

    Raises:
        ValueError: If the images of the prompts do not have these grids.
    """
    is_patch, is_end = torch.eq(input_ids, image_token_id), torch.eq(input_ids, vision_end_token_id)
    _check_images(is_patch, is_end, grids)
    spans = torch.tensor([max(grid) + 1 for grid in grids], device=input_ids.device)
    steps = _steps(input_ids, attention_mask).masked_fill(is_patch, 0).masked_scatter(is_end, spans)
    positions = _count(steps).expand(3, -1, -1).clone()
    coordinates = patch_coordinates(grids).to(input_ids.device)
    positions[:, is_patch] += torch.cat((torch.zeros_like(coordinates[:1]), coordinates)) + 1
    return positions


def _steps(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """How far each token of a text moves on, int64 [batch, length]: one, and padding not at all."""
    return torch.ones_like(input_ids, dtype=torch.long) if attention_mask is None else attention_mask.long()


def _count(steps: Tensor) -> Tensor:
    """Positions [batch, length] of tokens that move on so far each, from zero at the first."""
    return (steps.cumsum(dim=1) - 1).clamp_min(0)


def _check_images(is_patch: Tensor, is_end: Tensor, grids: list[Grid]) -> None:
    """Raises a `ValueError` unless the patches [batch, length] up to each `</vision>` are those of its grid."""
    image_of_patch = is_end.flatten().cumsum(dim=0)[is_patch.flatten()]
    images = torch.bincount(image_of_patch, minlength=int(is_end.sum())).tolist()
    expected = [rows * columns for rows, columns in grids]
    if images != expected:
        raise ValueError(f"the prompt holds images of {images} patches, but image_grid_hw describes {expected}")
