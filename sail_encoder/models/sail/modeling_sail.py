"""SAIL: one transformer that reads raw image patches and text (arXiv 2504.10462).

Notable features:
- a patch enters as the embedding of `<vpatch>` plus a linear map of its pixels, there is no vision tower;
- rotary embedding over (row, column): the faster half of the frequencies turns with the row, the slower with the other;
- attention is full within an image, its two delimiters included, and causal over text;
- otherwise the blocks are Mistral's: RMSNorm before attention and feed-forward, grouped keys and values, SwiGLU.

Images alone run packed end to end, without mask, cache or language head, up to the deepest layer asked for. Text, with
or without images, runs under a mask that is derived from where the images lie; no argument switches it off.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from sail_encoder.models.cache_name import CACHE, given_cache
from sail_encoder.models.sail.config_file import MASK_HEAD, check_loaded
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.packed_images import (
    PackedImages,
    check_patches,
    eager_attention,
    packed_attention,
    prefix_mask,
    repeat_images,
)
from sail_encoder.models.sail.positions import holds_images, note_offset, prompt_ids, prompt_positions, text_positions

ALL_ATTENTION_FUNCTIONS = AttentionInterface()  # set_attn_implementation looks for this name in a model's source

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines [..., length, head_dim] of the tokens' positions."""


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
    def forward(self, x: Tensor, position_ids: Tensor) -> Rotary:
        """Tables for `position_ids` [3, ..., length], as two tensors [..., length, head_dim] in the dtype of x."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        row_frequencies, column_frequencies = (1.0 / self.base**exponents).chunk(2)
        _, rows, columns = position_ids.float().unsqueeze(-1)
        angles = torch.cat((rows * row_frequencies, columns * column_frequencies), dim=-1)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate(heads: Tensor, rotary: Rotary) -> Tensor:
    """Rotates pairs of channels i and i + head_dim / 2 of [..., length, heads, head_dim], in their own precision."""
    cos, sin = (table.unsqueeze(-2) for table in rotary)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


class SailAttention(nn.Module):
    """Attention with rotary positions, over text with a mask or within packed images."""

    is_causal = True  # for the attention functions of transformers, where there is no mask: text is causal

    def __init__(self, config: SailConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.attention_width // config.num_attention_heads
        self.num_key_value_groups = config.attention_width // config.key_value_width
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.attention_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.key_value_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.key_value_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.attention_width, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        images: PackedImages | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from hidden states [batch, length, hidden_size], or within `images` packed into one row."""
        projections = (project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (rearrange(x, "b t (h d) -> b t h d", d=self.head_dim) for x in projections)
        query, key = rotate(query, rotary), rotate(key, rotary)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        cached = (key, value) if cache is None else cache.update(key, value, self.layer_idx)
        if images is not None:
            query, key, value = (rearrange(x, "1 h t d -> t h d") for x in (query, key, value))
            attended = packed_attention(query, key, value, images.lengths, images.cu_seqlens, self.scaling)
            return self.o_proj(rearrange(attended, "t h d -> 1 t (h d)")), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        options = {"scaling": self.scaling, "sliding_window": self.config.sliding_window, **kwargs}
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(self, query, *cached, attention_mask, dropout=dropout, **options)
        return self.o_proj(attended.flatten(2)), weights


class SailMLP(nn.Module):
    """Feed-forward block with a gate (SwiGLU)."""

    def __init__(self, config: SailConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps [..., hidden_size] to [..., hidden_size]."""
        return self.down_proj(self.activation(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class SailRMSNorm(nn.Module):
    """Root mean square norm: mean and division in float32, the product with the weight in the dtype of the input.

    In bfloat16 another order, such as that of `torch.nn.RMSNorm`, gives other numbers than the published code.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalises the last dimension."""
        precise = hidden_states.float()
        precise = precise * torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * precise.to(hidden_states.dtype)


class SailDecoderLayer(GradientCheckpointingLayer):
    """One block: attention and feed-forward, each on the normed residual stream and added to it."""

    def __init__(self, config: SailConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = SailAttention(config, layer_idx)
        self.mlp = SailMLP(config)
        self.input_layernorm = SailRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SailRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, rotary: Rotary, **options: Any) -> tuple[Tensor, Tensor | None]:
        """Runs the block; `options` are those of `SailAttention.forward`, whose weights come back too."""
        attended, weights = self.self_attn(self.input_layernorm(hidden_states), rotary, **options)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), weights


class SailPreTrainedModel(PreTrainedModel):
    """Base of the SAIL models: the configuration, weight initialisation, and what transformers may do with them."""

    config: SailConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SailDecoderLayer"]
    _skip_keys_device_placement = SailConfig.keys_to_ignore_at_inference
    # FlashAttention's kernels know causal or full, not a full prefix before causal text.
    _supports_flash_attn = False
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint, native or published; raises a `CheckpointError` where `check_loaded` finds a fault."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        check_loaded(model.state_dict(), info, pretrained_model_name_or_path)
        return (model, info) if wants_info else model


class SailModel(SailPreTrainedModel):
    """The transformer without the language head: a vision backbone, and the trunk of `SailForCausalLM`."""

    _keys_to_ignore_on_load_unexpected = ["lm_head.weight", MASK_HEAD]

    def __init__(self, config: SailConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vis_embed = nn.Linear(config.patch_dim, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(SailDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = SailRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = SailRotaryEmbedding(config)
        self.post_init()

    def encode_images(
        self, pixel_values: Tensor, image_grid_hw: Tensor, layers: Collection[int], norm: bool = True
    ) -> dict[int, Tensor]:
        """Runs images alone up to the deepest requested layer; each attends to itself in full and to no other.

        Args:
            pixel_values: [total patches, 3 * patch_size**2], normalised, channel first within a patch.
            image_grid_hw: [images, 2], rows and columns of patches; a `ValueError` says where they do not add up.
            layers: Blocks whose output to return, from 0 to `num_hidden_layers - 1`.
            norm: Whether to apply the model's final norm to each of them.

        Returns:
            For each layer the hidden states of the patches, [total patches, hidden_size].
        """
        states = self._patch_states(pixel_values, image_grid_hw, [layer + 1 for layer in layers])
        return {layer: self.norm(states[layer + 1]) if norm else states[layer + 1] for layer in layers}

    def encode_prefix(self, pixel_values: Tensor, image_grid_hw: Tensor) -> DynamicCache:
        """Runs one image alone and keeps its keys and values, a cache of `patches + 2` tokens for text."""
        images = PackedImages.from_grids(image_grid_hw, pixel_values, self.config)
        cache = DynamicCache(config=self.config)
        for _ in self.residual_stream(pixel_values, images, cache):
            pass
        note_offset(cache, images.position_ids[:, None])
        return cache

    def residual_stream(
        self, pixel_values: Tensor, images: PackedImages, cache: Cache | None = None
    ) -> Iterator[Tensor]:
        """Yields the embedding of packed images, then the output of each block in turn, [tokens, hidden_size].

        No block runs before its output is asked for. The cache is filled, where there is a single image.
        """
        hidden = self._add_pixels(self.embed_tokens(images.input_ids), pixel_values, images.patch_index)
        yield hidden
        rotary = self.rotary_emb(hidden, images.position_ids)
        for layer in self.layers:
            hidden = layer(hidden[None], rotary, cache=cache, images=images)[0][0]
            yield hidden

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs images alone, or text with or without images.

        Args:
            input_ids: int64 [batch, length]; images appear as `<vision> <vpatch>... </vision>`. None for images alone.
            pixel_values: [total patches, 3 * patch_size**2] of all images, in order.
            image_grid_hw: [images, 2], rows and columns of patches of these images.
            attention_mask: [batch, length], cached tokens included; zero at padding.
            position_ids: [3, batch, length] (time, row, column), or [batch, length] for text, where they may begin
                again for each of several texts in a row; derived where left out.
            past_key_values: Cache of earlier tokens, to which these are added; `cache` means the same.
            inputs_embeds: [batch, length, hidden_size] in place of `input_ids`; vision tokens are found in it.
            kwargs: `cache`, `use_cache` (whether to return one), `output_hidden_states`, `output_attentions`,
                `return_dict`; all else is handed to the attention function.

        Returns:
            `last_hidden_state` after the final norm: [batch, length, hidden_size], of images alone [total patches,
            hidden_size]. `hidden_states`: the embedding, then each block's output, the last one after the final norm.

        Raises:
            ValueError: If there is no input, image tokens, pixels and grids disagree, or nothing tells the positions.
        """
        if (pixel_values is None) != (image_grid_hw is None):
            raise ValueError("pixel_values and image_grid_hw [images, 2] go together; only one of them was given")
        cache = given_cache(past_key_values, kwargs)
        if input_ids is None and inputs_embeds is None:
            return self._forward_images(pixel_values, image_grid_hw, **kwargs)
        input_ids, hidden = self._embed(input_ids, inputs_embeds, pixel_values)
        mask = prefix_mask(input_ids, hidden, image_grid_hw, attention_mask, position_ids, cache, self.config)
        positions = text_positions(input_ids, image_grid_hw, attention_mask, position_ids, cache, self.config)
        return self._forward_text(hidden, mask, positions, cache, **kwargs)

    def _forward_images(
        self, pixel_values: Tensor | None, image_grid_hw: Tensor | None, **options: Any
    ) -> BaseModelOutputWithPast:
        if pixel_values is None or image_grid_hw is None:
            raise ValueError("there is no input; give input_ids, inputs_embeds, or pixel_values with image_grid_hw")
        depth, keep_states = len(self.layers), self._option("output_hidden_states", options)
        states = self._patch_states(pixel_values, image_grid_hw, range(depth + 1) if keep_states else [depth])
        last = self.norm(states.pop(depth))
        hidden_states = (*states.values(), last) if keep_states else None
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=hidden_states)

    def _forward_text(
        self, hidden: Tensor, mask: Any, position_ids: Tensor, cache: Cache | None, **options: Any
    ) -> BaseModelOutputWithPast:
        names = ("output_hidden_states", "output_attentions", "use_cache")
        keep_states, keep_weights, use_cache = (self._option(name, options) for name in names)
        if self.training and torch.is_grad_enabled() and self.layers[0].gradient_checkpointing:
            if cache is not None:
                raise ValueError("a cache would be filled twice by gradient checkpointing; give none, or turn that off")
            use_cache = False
        elif use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        rotary, states, weights = self.rotary_emb(hidden, position_ids), [hidden], []
        for layer in self.layers:
            hidden, attention = layer(hidden, rotary, attention_mask=mask, cache=cache, **options)
            states += [hidden] if keep_states else []
            weights += [attention] if keep_weights else []
        if cache is not None:
            note_offset(cache, position_ids)
        last = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=last,
            hidden_states=(*states[:-1], last) if keep_states else None,
            attentions=tuple(weights) if keep_weights else None,
            **{CACHE: cache if use_cache else None},
        )

    def _option(self, name: str, options: dict[str, Any]) -> Any:
        """Takes an option of a call out of `options`; the configuration has its default."""
        value = options.pop(name, None)
        return getattr(self.config, name) if value is None else value

    def _patch_states(self, pixel_values: Tensor, image_grid_hw: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        """Hidden states [total patches, hidden_size] after so many blocks; nothing beyond the deepest is run."""
        images = PackedImages.from_grids(image_grid_hw, pixel_values, self.config)
        stream = zip(range(max(depths) + 1), self.residual_stream(pixel_values, images), strict=False)
        return {depth: hidden[images.patch_index] for depth, hidden in stream if depth in depths}

    def _add_pixels(self, tokens: Tensor, pixel_values: Tensor, patch_index: Tensor) -> Tensor:
        """Token embeddings [tokens, hidden_size] with the mapped pixels added where the patches are."""
        pixels = self.vis_embed(pixel_values.to(tokens.dtype))
        return tokens.index_add(0, patch_index, pixels.to(tokens.dtype))

    def _embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ids [batch, length], -1 where only the embedding is known, and embeddings [batch, length, hidden_size]."""
        input_ids = prompt_ids(input_ids, inputs_embeds, self.embed_tokens.weight, self.config)
        tokens = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is not None:
            patch_index = torch.eq(input_ids.flatten(), self.config.vision_token_ids[1]).nonzero().squeeze(1)
            check_patches(pixel_values, len(patch_index), "the prompt holds")
            return input_ids, self._add_pixels(tokens.flatten(0, 1), pixel_values, patch_index).view_as(tokens)
        # The single tokens of decoding are not looked through, for the device would have to be waited for each time.
        if input_ids.shape[1] > 1 and not torch.compiler.is_compiling() and holds_images(input_ids, self.config):
            raise ValueError("the prompt holds an image, but there are no pixel_values")
        return input_ids, tokens


class SailForCausalLM(SailPreTrainedModel, GenerationMixin):
    """SAIL with its language head: answers questions about images.

    `generate` derives all positions from the whole prompt and `image_grid_hw` at the start. A prompt whose beginning is
    in the cache already is continued by passing all its ids and grids, and the pixels of new images alone.
    """

    _keys_to_ignore_on_load_unexpected = [MASK_HEAD]

    # Trainer would divide by a count of labels that takes in those of images.
    accepts_loss_kwargs = False
    trunk_class: type[SailModel] = SailModel
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SailConfig) -> None:
        super().__init__(config)
        self.model = self.trunk_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predicts the next token at each position.

        Inputs and errors are those of `SailModel.forward`, but there must be text. Of `labels` [batch, length], -100
        where nothing is to be learned, the tokens of images never count. Logits are computed for the last
        `logits_to_keep` positions, for these positions if it is a tensor, or for all if it is 0.

        Returns:
            `logits` [batch, kept, vocab_size], and `loss` where labels are given.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("text needs input_ids or inputs_embeds; SailModel gives features of images alone")
        inputs = input_ids, pixel_values, image_grid_hw, attention_mask, position_ids, past_key_values, inputs_embeds
        outputs = self.model(*inputs, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits, loss = self.lm_head(outputs.last_hidden_state[:, kept]), None
        if labels is not None:
            vision_ids = torch.tensor(self.config.all_vision_token_ids, dtype=labels.dtype, device=labels.device)
            labels = labels.masked_fill(torch.isin(labels, vision_ids), -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        passed_on = {name: outputs.get(name) for name in (CACHE, "hidden_states", "attentions")}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **passed_on)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates as in transformers; vision tokens, which stand for images, are never sampled."""
        suppressed = {*(self.generation_config.suppress_tokens or ()), *self.config.all_vision_token_ids}
        self.generation_config.suppress_tokens = sorted(suppressed) or None
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, cache: Cache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs of one step; see transformers, which looks for the names of `cache` and `inputs_embeds` here."""
        cache = kwargs.pop("past_key_values", cache)
        if isinstance(cache, DynamicCache) and cache.get_seq_length() == 0:
            # transformers does not call it the first step of an assistant model, which then would not see the image.
            kwargs["is_first_iteration"] = True
        kwargs |= {CACHE: cache, "inputs_embeds": inputs_embeds}
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if inputs.get("pixel_values") is not None:
            # For static caches transformers has already built a mask that ignores images; forward builds the right one.
            inputs["attention_mask"] = kwargs.get("attention_mask")
        else:
            inputs.pop("image_grid_hw", None)
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        ids, grids = model_kwargs.get("input_ids", inputs_tensor), model_kwargs.get("image_grid_hw")
        if grids is None:
            if model_kwargs.get("pixel_values") is not None or holds_images(ids, self.config):
                raise ValueError("a prompt with images needs image_grid_hw [images, 2], also for images in the cache")
            text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
            return text.expand(3, *text.shape)
        ids = prompt_ids(ids, model_kwargs.get("inputs_embeds"), self.model.embed_tokens.weight, self.config)
        return prompt_positions(ids, grids, model_kwargs.get("attention_mask"), self.config)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        ids = prompt_ids(input_ids, kwargs.get("inputs_embeds"), self.model.embed_tokens.weight, self.config)
        packed = repeat_images(ids, kwargs, expand_size, self.config)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)
        return input_ids, {**kwargs, **packed}
