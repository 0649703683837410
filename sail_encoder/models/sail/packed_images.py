"""Attention that sees images in full: packed end to end in one row, or among the text of a prompt.

Alone, images of any sizes share a row of tokens (`PackedImages`), and `packed_attention` keeps them apart. In a prompt
a mask does it (`prefix_mask`): an image sees itself in full, text what precedes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from sail_encoder.io.devices import send
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.positions import as_grids, prefix_positions, seen_tokens

_FLASH_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs, Ampere, that the variable-length kernel runs on."""


@dataclass(frozen=True)
class PackedImages:
    """`<vision> <vpatch>... </vision>` of every image, end to end.

    Attributes:
        input_ids: int64 [tokens].
        position_ids: int64 [3, tokens].
        patch_index: int64 [patches], where the patches lie among the tokens.
        lengths: Tokens per image.
        cu_seqlens: int32 [images + 1] on the model's device: the cumulative lengths, starting at zero.
    """

    input_ids: Tensor
    position_ids: Tensor
    patch_index: Tensor
    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def from_grids(cls, image_grid_hw: Tensor, pixel_values: Tensor, config: SailConfig) -> "PackedImages":
        """Lays out images, on the device of their pixels.

        Args:
            image_grid_hw: [images, 2], rows and columns of patches.
            pixel_values: [total patches, 3 * patch_size**2].
            config: Tells which tokens stand for images.

        Raises:
            ValueError: If the grids do not add up to the patches.
        """
        start_id, patch_id, end_id = config.vision_token_ids
        grids, device = as_grids(image_grid_hw), pixel_values.device
        lengths = torch.tensor([rows * columns + 2 for rows, columns in grids])
        check_patches(pixel_values, int(lengths.sum()) - 2 * len(grids), "image_grid_hw describes")
        ends = lengths.cumsum(0) - 1
        starts = ends - lengths + 1
        input_ids = torch.full((int(lengths.sum()),), patch_id)
        input_ids[starts], input_ids[ends] = start_id, end_id
        is_patch = torch.ones_like(input_ids, dtype=torch.bool)
        is_patch[starts] = is_patch[ends] = False
        host = input_ids, prefix_positions(grids), is_patch.nonzero().squeeze(1), cumulative(lengths)
        ids, positions, patch_index, cu_seqlens = (send(tensor, device) for tensor in host)
        return cls(ids, positions, patch_index, tuple(lengths.tolist()), cu_seqlens)


def check_patches(pixel_values: Tensor, expected: int, source: str) -> None:
    """Raises a `ValueError` if there are not as many patches as `source` says."""
    if len(pixel_values) != expected:
        raise ValueError(f"pixel_values has {len(pixel_values)} patches, but {source} {expected}")


def repeat_images(input_ids: Tensor, inputs: dict[str, Any], times: int, config: SailConfig) -> dict[str, Tensor]:
    """Takes the packed inputs of prompts out of `inputs`, and repeats them as often as each prompt is to be repeated.

    Args:
        input_ids: int64 [prompts, length].
        inputs: Arguments of a model; `pixel_values` [total patches, 3 * patch_size**2], `image_grid_hw` [images, 2] and
            `position_ids` [3, prompts, length] are removed from it. Images in a cache have grids, but no pixels.
        times: How often.
        config: Tells which tokens stand for images.

    Returns:
        Those of the three that were there, with all images of each prompt next to each other.
    """
    given = {name: inputs.pop(name, None) for name in ("pixel_values", "image_grid_hw", "position_ids")}
    packed = {name: value for name, value in given.items() if value is not None}
    if times > 1 and "image_grid_hw" in packed:
        images_per_prompt = torch.eq(input_ids, config.vision_token_ids[0]).sum(dim=1).tolist()
        grids = packed["image_grid_hw"].split(images_per_prompt)
        packed["image_grid_hw"] = torch.cat([images for images in grids for _ in range(times)])
        if "pixel_values" in packed:
            patches = packed["pixel_values"].split([int(images.prod(dim=1).sum()) for images in grids])
            packed["pixel_values"] = torch.cat([images for images in patches for _ in range(times)])
    if times > 1 and "position_ids" in packed:
        packed["position_ids"] = packed["position_ids"].repeat_interleave(times, dim=-2)
    return packed


def cumulative(lengths: Tensor) -> Tensor:
    """Cumulative lengths from zero on, int32 [images + 1], from int64 [images]."""
    return F.pad(lengths, (1, 0)).cumsum(0, dtype=torch.int32)


def runs_of_equal_length(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours of equal length, as (images, length): each run is one rectangular batch."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], cu_seqlens: Tensor, scale: float
) -> Tensor:
    """Attends within each image in both directions, and from none to another.

    One variable-length kernel does it in half precision on CUDA GPUs since Ampere. Elsewhere neighbours of equal length
    share a call of PyTorch's attention, so it pays to pack images in the order of their lengths.

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, kv_heads, head_dim]; `heads` is a multiple of `kv_heads`.
        value: Like `key`.
        lengths: Tokens per image.
        cu_seqlens: int32 [images + 1], their cumulative lengths.
        scale: Factor on the scores before the softmax.

    Returns:
        [tokens, heads, head_dim].
    """
    if _has_varlen_kernel(query):
        # Older releases of the kernel want as many key heads as query heads, and the copy costs next to nothing.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        longest = max(lengths)
        return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest, scale=scale)  # type: ignore[return-value]
    return _attention_by_runs(query, key, value, lengths, scale)


def _has_varlen_kernel(query: Tensor) -> bool:
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY


def _attention_by_runs(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    outputs, start = [], 0
    for images, length in runs_of_equal_length(lengths):
        stop = start + images * length
        q, k, v = (x[start:stop].unflatten(0, (images, length)).transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs)


def prefix_mask(
    input_ids: Tensor,
    hidden: Tensor,
    image_grid_hw: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    config: SailConfig,
) -> Any:
    """Mask of a prompt, in the form that the attention function takes: causal, but each image sees itself in full.

    Arguments as in `SailModel.forward`; `hidden` are the embeddings [batch, length, hidden_size].

    Raises:
        ValueError: If there are images, and the attention function has no mask and would be causal over them.
    """
    blocks = None if image_grid_hw is None else image_blocks(input_ids, config, seen_tokens(cache))
    # Texts that are packed into one row are distinguished by positions that begin again.
    packed = position_ids if position_ids is not None and position_ids.ndim == 2 else None
    create = create_causal_mask if config.sliding_window is None else create_sliding_window_causal_mask
    mask = create(config, hidden, attention_mask, cache, position_ids=packed, block_sequence_ids=blocks)
    if blocks is not None and mask is None:
        raise ValueError(f"attention '{config._attn_implementation}' cannot see images in full; use sdpa")
    return mask


def image_blocks(input_ids: Tensor, config: SailConfig, seen_tokens: int) -> Tensor:
    """Number of the image that each token belongs to, delimiters included, and -1 for text.

    Args:
        input_ids: int64 [batch, length].
        config: Tells which tokens stand for images.
        seen_tokens: Length of the cached prefix, which is numbered -1 whatever it holds.

    Returns:
        int64 [batch, seen_tokens + length].
    """
    start_id, _, end_id = config.vision_token_ids
    starts, ends = torch.eq(input_ids, start_id), torch.eq(input_ids, end_id)
    opened, closed = starts.cumsum(dim=1), ends.cumsum(dim=1)
    blocks = torch.where((opened > closed) | ends, opened - 1, -1)
    return F.pad(blocks, (seen_tokens, 0), value=-1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attends by plain products, for those who want the weights; softmax in float32, as the published code does."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights
