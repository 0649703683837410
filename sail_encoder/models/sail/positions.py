"""Positions of tokens, and the images among them.

An image counts as one step forward in reading order. `<vision>` takes the next free position `p`, the patch in row `r`
and column `c` sits at `(p + 1, p + 1 + r, p + 1 + c)`, `</vision>` follows at `p + max(rows, columns) + 1`, and text
goes on from there with three equal numbers. The time axis is kept for interchange; the model rotates by the others.
"""

from functools import lru_cache

import torch
from torch import Tensor
from transformers import Cache

from sail_encoder.models.sail.configuration_sail import SailConfig

Grid = tuple[int, int]
"""Rows and columns of patches."""


def as_grids(image_grid_hw: Tensor) -> list[Grid]:
    """Rows and columns per image, from int [images, 2]."""
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
        grids: Rows and columns per image.

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
        config: Tells which tokens stand for images.

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
    """Positions of prompts that hold images; arguments and errors as in `prompt_positions`."""
    is_patch, is_end = torch.eq(input_ids, image_token_id), torch.eq(input_ids, vision_end_token_id)
    _check_images(is_patch, is_end, grids)
    spans = torch.tensor([max(grid) + 1 for grid in grids], device=input_ids.device)
    steps = _steps(input_ids, attention_mask).masked_fill(is_patch, 0).masked_scatter(is_end, spans)
    positions = _count(steps).expand(3, -1, -1).clone()
    coordinates = patch_coordinates(grids).to(input_ids.device)
    positions[:, is_patch] += torch.cat((torch.zeros_like(coordinates[:1]), coordinates)) + 1
    return positions


def _steps(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Steps by which each token of a text moves on, int64 [batch, length]: one, and none for padding."""
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


def text_positions(
    input_ids: Tensor,
    image_grid_hw: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    config: SailConfig,
) -> Tensor:
    """Positions of text that may go on after a cache: those that were given, or else what follows.

    Arguments as in `prompt_positions`, but `attention_mask` may also cover the cached tokens, and `position_ids` be
    [batch, length] where there are no images.

    Returns:
        int64 [3, batch, length].

    Raises:
        ValueError: As `prompt_positions` and `next_positions`, and if images are to be numbered like words.
    """
    if position_ids is None:
        if attention_mask is not None:
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        start = next_positions(cache, len(input_ids))
        return prompt_positions(input_ids, image_grid_hw, attention_mask, config) + start
    if image_grid_hw is not None and position_ids.ndim == 2:
        raise ValueError("positions [batch, length] would number patches like words; use [3, batch, length] or none")
    return position_ids.expand(3, -1, -1)


def holds_images(input_ids: Tensor, config: SailConfig) -> bool:
    """Tells whether there is a patch among token ids; waits for the device."""
    return config.image_token_id is not None and bool(torch.eq(input_ids, config.image_token_id).any())


def prompt_ids(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, embeddings: Tensor, config: SailConfig
) -> Tensor:
    """Ids of prompts, of embedded ones those of their vision tokens.

    Args:
        input_ids: int64 [batch, length]; None, or of no length, where the prompts are embedded.
        inputs_embeds: [batch, length, hidden_size], or None.
        embeddings: [vocab_size, hidden_size], the model's table.
        config: Tells which tokens stand for images; where it does not know, none is found.

    Returns:
        int64 [batch, length], -1 at tokens that are known by their embedding alone.
    """
    if input_ids is not None and (inputs_embeds is None or input_ids.shape[1]):
        return input_ids
    assert inputs_embeds is not None, "a prompt has ids or embeddings"
    ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    for token_id in config.vision_token_ids if config.image_token_id is not None else ():
        is_token = (inputs_embeds == embeddings[token_id]).all(dim=-1)
        ids = ids.masked_fill(is_token, token_id)
    return ids


def seen_tokens(cache: Cache | None) -> int:
    """Number of tokens in a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def note_offset(cache: Cache, position_ids: Tensor) -> None:
    """Notes on a cache where text continues after it: how far the next position is from the number of its tokens.

    An image takes fewer positions than it has tokens, and padding takes none. Each token of text moves both by one, so
    the offset [batch] of a prompt holds while text is added and cropped after it. Beside it is noted how long the cache
    was when the prompt ended; of shorter ones the offset is not known.

    Args:
        cache: Cache that ends with the tokens at these positions.
        position_ids: int64 [3, batch, length] of a prompt. Single tokens of decoding do not change the offset and are
            skipped, so that they need not wait for the device.
    """
    known = hasattr(cache, "position_offset")
    if torch.compiler.is_compiling() or (known and position_ids.shape[-1] == 1):
        return
    tokens = seen_tokens(cache)
    # An attribute, because any kind of cache may come, and copies of it have to keep the offset.
    cache.position_offset = position_ids[..., -1].amax(dim=0) + 1 - tokens, tokens


def next_positions(cache: Cache | None, batch_size: int) -> Tensor | int:
    """Position that follows the cached tokens, int64 [batch, 1], or 0 where nothing is cached.

    Raises:
        ValueError: If it is not known, because the cache was filled by another model or in compiled code, was cropped
            into a prompt, or had its rows repeated or selected.
    """
    tokens = seen_tokens(cache)
    if not tokens:
        return 0
    noted: tuple[Tensor, int] | None = getattr(cache, "position_offset", None)
    if noted is None:
        raise ValueError(
            "position_ids are needed to go on from a cache that was filled by another model or in compiled code"
        )
    offset, noted_tokens = noted
    if tokens < noted_tokens or len(offset) != batch_size:
        raise ValueError(
            f"position_ids are needed to go on from a cache of {batch_size} x {tokens} tokens: it held "
            f"{len(offset)} x {noted_tokens} when its last prompt ended"
        )
    return (offset + tokens)[:, None]
