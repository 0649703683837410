"""The blocks of SAIL: Mistral's, with a rotary embedding over rows and columns and attention within packed images."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer, apply_rotary_pos_emb

from sail_encoder.attention import Segments, packed_attention
from sail_encoder.sail.configuration_sail import SailConfig


class SailRotaryEmbedding(nn.Module):
    """Cosines and sines over (row, column).

    The frequencies are derived in float32 at every call and never stored, so that casting the model, or building it on
    the meta device, cannot degrade them.
    """

    def __init__(self, config: SailConfig) -> None:
        super().__init__()
        self.head_dim = config.attention_width // config.num_attention_heads
        self.base = config.rotary_base

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tables for `position_ids` [3, ..., length], as two tensors [..., length, head_dim] in the dtype of x."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        row_frequencies, column_frequencies = (1.0 / self.base**exponents).chunk(2)
        _, rows, columns = position_ids.float().unsqueeze(-1)
        angles = torch.cat((rows * row_frequencies, columns * column_frequencies), dim=-1)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class SailAttention(MistralAttention):
    """Mistral's attention, which can also attend within packed images."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        segments: Segments | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if segments is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        projections = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        query, key, value = (rearrange(x, "1 t (h d) -> t h d", d=self.head_dim) for x in projections)
        cos, sin = position_embeddings
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if past_key_values is not None:
            past_key_values.update(*(rearrange(x, "t h d -> 1 h t d") for x in (key, value)), self.layer_idx)
        attended = packed_attention(query, key, value, segments, self.scaling)
        return self.o_proj(rearrange(attended, "t h d -> 1 t (h d)")), None


class SailDecoderLayer(MistralDecoderLayer):
    """Mistral's layer around `SailAttention`."""

    def __init__(self, config: SailConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = SailAttention(config, layer_idx)
