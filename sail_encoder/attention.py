"""Full attention over packed images: many sequences of different lengths in one row, none sees another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

_FLASH_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs, Ampere, that the variable-length kernel runs on."""


@dataclass(frozen=True)
class Segments:
    """Where each image's tokens lie in a packed sequence.

    Attributes:
        lengths: Tokens of each image.
        boundaries: int32 [images + 1] on the model's device: the cumulative lengths, starting at zero.
    """

    lengths: tuple[int, ...]
    boundaries: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Segments":
        """Lays images of these lengths end to end."""
        boundaries = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        # Elsewhere than on CUDA nothing waits for such a copy.
        return cls(tuple(lengths), boundaries.to(device, non_blocking=device.type == "cuda"))

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbours of equal length, as (images, length): each run is one rectangular batch."""
        return [(len(list(group)), length) for length, group in groupby(self.lengths)]


def packed_attention(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """Attends within each segment, in both directions.

    One variable-length kernel does it in half precision on CUDA GPUs since Ampere. Elsewhere neighbours of equal length
    share a call of PyTorch's attention, so it pays to pack images in the order of their lengths.

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, kv_heads, head_dim]; `heads` is a multiple of `kv_heads`.
        value: Like `key`.
        segments: How the tokens divide into images.
        scale: Factor on the scores before the softmax.

    Returns:
        [tokens, heads, head_dim].
    """
    if _has_varlen_kernel(query):
        # Older releases of the kernel want as many key heads as query heads, and the copy costs next to nothing.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        longest = max(segments.lengths)
        bounds = segments.boundaries
        return varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale)  # type: ignore[return-value]
    return _attention_by_runs(query, key, value, segments, scale)


def _has_varlen_kernel(query: Tensor) -> bool:
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(query.device) >= _FLASH_CAPABILITY


def _attention_by_runs(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    outputs, start = [], 0
    for images, length in segments.runs:
        stop = start + images * length
        q, k, v = (x[start:stop].unflatten(0, (images, length)).transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs)
