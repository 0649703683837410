"""Where text continues behind a cache: an image takes fewer positions than it has tokens, and padding takes none."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache


@dataclass(frozen=True)
class PositionOffset:
    """How far the next position is from the number of tokens in a cache.

    Each token of text moves both by one, so the offset of a prompt holds while text is added and cropped behind it.

    Attributes:
        offset: int64 [batch].
        tokens: Length of the cache when the prompt ended; of shorter ones the offset is not known.
    """

    offset: Tensor
    tokens: int


def seen_tokens(cache: Cache | None) -> int:
    """Tokens that are in a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def remember_offset(cache: Cache, position_ids: Tensor) -> None:
    """Notes on a cache where text continues behind it.

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
    cache.position_offset = PositionOffset(position_ids[..., -1].amax(dim=0) + 1 - tokens, tokens)


def next_positions(cache: Cache | None, batch_size: int) -> Tensor | int:
    """The position that follows the cached tokens, int64 [batch, 1], or 0 where nothing is cached.

    Raises:
        ValueError: If it is not known, because the cache was filled by another model or in compiled code, was cropped
            into a prompt, or had its rows repeated or selected.
    """
    tokens = seen_tokens(cache)
    if not tokens:
        return 0
    noted: PositionOffset | None = getattr(cache, "position_offset", None)
    if noted is None:
        raise ValueError(
            "position_ids are needed to go on from a cache that was filled by another model or in compiled code"
        )
    if tokens < noted.tokens or len(noted.offset) != batch_size:
        raise ValueError(
            f"position_ids are needed to go on from a cache of {batch_size} x {tokens} tokens: it held "
            f"{len(noted.offset)} x {noted.tokens} when its last prompt ended"
        )
    return (noted.offset + tokens)[:, None]
