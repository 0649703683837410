"""The way of the published example, written from its description, to measure against.

One image at a time; a dense additive mask; a cache that is concatenated at each step; keys and values repeated for
all heads; rotary tables made again in each layer; logits of all positions in float32.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from sail_encoder.images.resizing import Size
from sail_encoder.models.sail.modeling_sail import SailForCausalLM, rotate
from sail_encoder.models.sail.packed_images import PackedImages
from sail_encoder.models.sail.positions import text_and_image_positions


@torch.no_grad()
def run_layers(
    model: SailForCausalLM, hidden: Tensor, position_ids: Tensor, mask: Tensor, cache: DynamicCache
) -> tuple[list[Tensor], Tensor]:
    """Embedded tokens [1, length, C] through all layers.

    Returns:
        All hidden states, and the logits [1, length, vocabulary] in float32.
    """
    trunk: Any = model.model
    config = model.config
    length = hidden.shape[1]
    groups = config.attention_width // config.key_value_width
    states = [hidden]
    for index, layer in enumerate(trunk.layers):
        rotary = trunk.rotary_emb(hidden, position_ids)
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        query, key, value = (
            projection(normed).view(1, length, -1, config.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = (rotate(heads, rotary).transpose(1, 2) for heads in (query, key))
        key, value = cache.update(key, value.transpose(1, 2), index)
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        attended = F.scaled_dot_product_attention(query.contiguous(), key, value, attn_mask=mask)
        hidden = hidden + attention.o_proj(attended.transpose(1, 2).reshape(1, length, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        states.append(hidden)
    states[-1] = trunk.norm(hidden)
    return states, model.lm_head(states[-1]).float()


@torch.no_grad()
def encode_image(model: SailForCausalLM, pixels: Tensor, grid: Size, cache: DynamicCache) -> list[Tensor]:
    """All hidden states of one image's prefix."""
    images = PackedImages.from_grids(torch.tensor([grid]), pixels, model.config)
    hidden = next(model.model.residual_stream(pixels, images))[None]
    length = hidden.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool, device=pixels.device)
    return run_layers(model, hidden, images.position_ids, additive(allowed, hidden.dtype), cache)[0]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask [1, 1, length, length] that is added to the scores."""
    mask = torch.zeros(1, 1, *allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


@torch.no_grad()
def answer(model: SailForCausalLM, prefix: DynamicCache, grid: Size, prompt: Tensor, new_tokens: int) -> list[int]:
    """Greedy answer to a prompt [length] about an image whose cache is given, which is copied first."""
    trunk: Any = model.model
    cache = copy.deepcopy(prefix)
    positions = _positions_behind(model, grid, len(prompt), prompt.device)
    seen = prefix.get_seq_length()
    causal = torch.ones(len(prompt), seen + len(prompt), dtype=torch.bool, device=prompt.device).tril(seen)
    dtype = trunk.embed_tokens.weight.dtype
    _, logits = run_layers(model, trunk.embed_tokens(prompt)[None], positions, additive(causal, dtype), cache)
    said = [int(logits[0, -1].argmax())]
    while len(said) < new_tokens:
        positions = torch.cat((positions, positions[:, -1:] + 1), dim=1)
        token = torch.tensor([said[-1]], device=prompt.device)
        everything = torch.ones(1, cache.get_seq_length() + 1, dtype=torch.bool, device=prompt.device)
        mask = additive(everything, dtype)
        _, logits = run_layers(model, trunk.embed_tokens(token)[None], positions[:, -1:], mask, cache)
        said.append(int(logits[0, -1].argmax()))
    return said


def _positions_behind(model: SailForCausalLM, grid: Size, length: int, device: torch.device) -> Tensor:
    start, patch, end = model.config.vision_token_ids
    ids = torch.tensor([[start, *[patch] * (grid[0] * grid[1]), end, *[0] * length]], device=device)
    return text_and_image_positions(ids, [grid], patch, end, None)[:, 0, -length:]
