"""Caches of keys and values: shared by conversations that go on from one point, and joined into batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache


def pad_after_prefixes(rows: Sequence[list[int]], prefixes: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads prompts so that their cached parts end at one column, and they themselves at another.

    Args:
        rows: Token ids of each prompt.
        prefixes: How many of them are in a cache.
        pad_id: Id that stands at padding.

    Returns:
        int64 [rows, length] each: token ids, and a mask that is zero at padding.
    """
    cached = max(prefixes)
    length = cached + max(len(row) - prefix for row, prefix in zip(rows, prefixes, strict=True))
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for index, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        for part, end in ((row[:prefix], cached), (row[prefix:], length)):
            ids[index, end - len(part) : end] = torch.tensor(part, dtype=torch.long)
            mask[index, end - len(part) : end] = 1
    return ids, mask


def join_caches(caches: Sequence[DynamicCache], config: PreTrainedConfig) -> DynamicCache:
    """A cache with a row for each of these, which have one each; shorter ones are padded in front.

    Empty ones may be among them.
    """
    joined = DynamicCache(config=config)
    if not any(cache.get_seq_length() for cache in caches):
        return joined
    for number, layer in enumerate(joined.layers):
        parts = [cache.layers[number] for cache in caches]
        keys, values = (_stack([getattr(part, name) for part in parts]) for name in ("keys", "values"))
        layer.update(keys, values)
        if layer.is_sliding:
            # Windows that have forgotten their first tokens still count them.
            layer.cumulative_length = max(part.get_seq_length() for part in parts)
    return joined


def _stack(states: Sequence[Any]) -> Tensor:
    """Keys or values [1, heads, length, C] as rows of one tensor, zeros in front; None stands for no tokens."""
    known = [state for state in states if state is not None and state.numel()]
    length = max(state.shape[2] for state in known)
    none = known[0][:, :, :0]
    filled = [none if state is None or not state.numel() else state for state in states]
    return torch.cat([F.pad(state, (0, 0, length - state.shape[2], 0)) for state in filled])
