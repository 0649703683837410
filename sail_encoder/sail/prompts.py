"""Finds the images of a prompt among its tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F

VisionTokenIds = tuple[int, int, int]
"""Ids of `<vision>`, `<vpatch>` and `</vision>`."""


def holds_images(input_ids: Tensor, image_token_id: int | None) -> bool:
    """Whether there is a patch among token ids; waits for the device."""
    return image_token_id is not None and bool(torch.eq(input_ids, image_token_id).any())


def image_blocks(input_ids: Tensor, vision_token_ids: VisionTokenIds, seen_tokens: int) -> Tensor:
    """The number of the image that each token belongs to, delimiters included, and -1 for text.

    Args:
        input_ids: int64 [batch, length].
        vision_token_ids: Ids of the vision tokens.
        seen_tokens: Length of the cached prefix, which is numbered -1 whatever it holds.

    Returns:
        int64 [batch, seen_tokens + length].
    """
    start_id, _, end_id = vision_token_ids
    starts, ends = torch.eq(input_ids, start_id), torch.eq(input_ids, end_id)
    opened, closed = starts.cumsum(dim=1), ends.cumsum(dim=1)
    blocks = torch.where((opened > closed) | ends, opened - 1, -1)
    return F.pad(blocks, (seen_tokens, 0), value=-1)


def find_vision_tokens(inputs_embeds: Tensor, embeddings: Tensor, vision_token_ids: VisionTokenIds) -> Tensor:
    """The ids of the vision tokens among embedded tokens, and -1 for all others.

    Args:
        inputs_embeds: [batch, length, hidden_size].
        embeddings: [vocab_size, hidden_size], the model's table.
        vision_token_ids: Ids of the vision tokens.

    Returns:
        int64 [batch, length].
    """
    ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
    for token_id in vision_token_ids:
        is_token = (inputs_embeds == embeddings[token_id]).all(dim=-1)
        ids = ids.masked_fill(is_token, token_id)
    return ids
