"""SAIL: one transformer that reads raw image patches and text (arXiv 2504.10462).

Notable features:
- Mistral's layers, taken from transformers;
- a patch enters as the embedding of `<vpatch>` plus a linear map of its pixels, there is no vision tower;
- rotary embedding over rows and columns: the faster half of the frequencies turns with the row, the slower with the
  column;
- attention is full within an image, its two delimiters included, and causal over text.

Two paths lead through the same weights. The encoder path (`SailModel.encode_images`) takes images alone, packed end to
end, without mask, cache or language head, and stops at the deepest layer asked for. The language path
(`SailModel.forward` with `input_ids`) derives the prefix mask from where the images lie; no argument switches it off.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from sail_encoder.sail.blocks import SailAttention, SailDecoderLayer, SailRotaryEmbedding
from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.generation import SailGenerationMixin
from sail_encoder.sail.positions import as_grids, text_and_image_positions
from sail_encoder.sail.prefixes import ImagePrefixes, check_patches
from sail_encoder.sail.prompts import image_blocks, recognize
from sail_encoder.sail.published import missing_patch_weight


class SailPreTrainedModel(PreTrainedModel):
    """What the SAIL models share: the configuration, weight initialisation, and what transformers may do with them."""

    config: SailConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SailDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    # FlashAttention's kernels know causal or full, not a full prefix before causal text.
    _supports_flash_attn = False
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SailDecoderLayer, "attentions": SailAttention}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint in the native or the published format; options as in transformers.

        Raises:
            CheckpointError: If there is no patch embedding, without which the model is blind.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if any(key.endswith("vis_embed.weight") for key in info["missing_keys"]):
            raise missing_patch_weight(pretrained_model_name_or_path)
        return (model, info) if output_loading_info else model


class SailModel(SailPreTrainedModel):
    """The transformer without the language head: a vision backbone, and the trunk of `SailForCausalLM`."""

    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]

    def __init__(self, config: SailConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vis_embed = nn.Linear(config.patch_dim, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(SailDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = SailRotaryEmbedding(config)
        self.post_init()

    def encode_images(
        self, pixel_values: Tensor, image_grid_hw: Tensor, layers: Collection[int], norm: bool = True
    ) -> dict[int, Tensor]:
        """Runs image-only prefixes up to the deepest requested layer.

        Every image attends to itself in full and to no other image, whatever else is in the batch.

        Args:
            pixel_values: [total patches, 3 * patch_size**2], normalised, channel first within a patch.
            image_grid_hw: [images, 2], rows and columns of patches.
            layers: Blocks whose output to return, from 0 to `num_hidden_layers - 1`.
            norm: Whether to apply the model's final norm to each of them.

        Returns:
            For each layer the hidden states of the patches, [total patches, hidden_size].

        Raises:
            ValueError: If the grids do not add up to the patches.
        """
        prefixes = ImagePrefixes.of(pixel_values, image_grid_hw, self.config)
        stream = self.residual_stream(pixel_values, prefixes)
        next(stream)
        states = {}
        for index in range(max(layers) + 1):
            hidden = next(stream)
            if index in layers:
                patches = hidden[prefixes.patch_index]
                states[index] = self.norm(patches) if norm else patches
        return states

    def encode_prefix(self, pixel_values: Tensor, image_grid_hw: Tensor) -> DynamicCache:
        """Runs one image by the encoder path and keeps its keys and values, for text to continue from.

        Args:
            pixel_values: [patches, 3 * patch_size**2] of the image.
            image_grid_hw: [1, 2], its rows and columns of patches.

        Returns:
            A cache of `rows * columns + 2` tokens.
        """
        prefixes = ImagePrefixes.of(pixel_values, image_grid_hw, self.config)
        cache = DynamicCache(config=self.config)
        for _ in self.residual_stream(pixel_values, prefixes, cache):
            pass
        cache.next_positions = prefixes.position_ids[:, -1:].amax(dim=0) + 1
        return cache

    def residual_stream(
        self, pixel_values: Tensor, prefixes: ImagePrefixes, past_key_values: Cache | None = None
    ) -> Iterator[Tensor]:
        """Runs packed images block by block, as far as the result is read.

        Args:
            pixel_values: [total patches, 3 * patch_size**2].
            prefixes: Where they lie.
            past_key_values: Cache to fill, where there is one image.

        Yields:
            The embedding, then the output of each block in turn, [tokens, hidden_size].
        """
        hidden = self._add_pixels(self.embed_tokens(prefixes.input_ids), pixel_values, prefixes.patch_index)
        yield hidden
        rotary = self.rotary_emb(hidden, prefixes.position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden[None],
                past_key_values=past_key_values,
                position_embeddings=rotary,
                segments=prefixes.segments,
            )[0]
            yield hidden

    def _add_pixels(self, tokens: Tensor, pixel_values: Tensor, patch_index: Tensor) -> Tensor:
        """Token embeddings [tokens, hidden_size] with the mapped pixels added where the patches are."""
        pixels = self.vis_embed(pixel_values.to(tokens.dtype))
        return tokens.index_add(0, patch_index, pixels.to(tokens.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Runs images alone (the encoder path) or text with images (the language path).

        Args:
            input_ids: int64 [batch, length]; images appear as `<vision> <vpatch>... </vision>`. Leave it out for the
                encoder path.
            pixel_values: [total patches, 3 * patch_size**2] of all images, in order.
            image_grid_hw: [images, 2], rows and columns of patches.
            attention_mask: [batch, length], zero at padding.
            position_ids: [3, batch, length] (time, row, column); derived where left out.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: [batch, length, hidden_size] in place of `input_ids`; images are where it holds the
                embeddings of vision tokens.
            use_cache: Whether to return a cache.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` after the final norm: [total patches, hidden_size] on the encoder path,
            [batch, length, hidden_size] on the language path. `hidden_states` starts with the embedding, entry i is
            the output of block i - 1, and the last entry is after the final norm.

        Raises:
            ValueError: If image tokens, pixels and grids disagree.
        """
        if input_ids is None and inputs_embeds is None:
            return self._forward_images(pixel_values, image_grid_hw, **kwargs)
        return self._forward_language(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_grid_hw=image_grid_hw,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    @can_return_tuple
    def _forward_images(
        self, pixel_values: Tensor, image_grid_hw: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPast:
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        prefixes = ImagePrefixes.of(pixel_values, image_grid_hw, self.config)
        states = []
        for hidden in self.residual_stream(pixel_values, prefixes):
            if output_hidden_states:
                states.append(hidden[prefixes.patch_index])
        last = self.norm(hidden[prefixes.patch_index])
        hidden_states = (*states[:-1], last) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=hidden_states)

    @merge_with_config_defaults
    @capture_outputs
    def _forward_language(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        image_grid_hw: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
        inputs_embeds: Tensor | None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if pixel_values is None:
            hidden, blocks = self._embed_text(input_ids, inputs_embeds), None
        else:
            vision_ids = self.config.vision_token_ids
            if input_ids is None:
                input_ids = recognize(inputs_embeds, self.embed_tokens.weight, vision_ids)  # type: ignore[arg-type]
            hidden = self._embed_text_and_images(input_ids, inputs_embeds, pixel_values)
            blocks = image_blocks(input_ids, vision_ids, _seen_tokens(past_key_values))
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._derive_positions(hidden, input_ids, image_grid_hw, attention_mask, past_key_values)
        elif position_ids.ndim == 2:
            position_ids = position_ids.expand(3, *position_ids.shape)
        mask = create_masks_for_generate(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            block_sequence_ids=blocks,
        )
        rotary = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=rotary,
                **kwargs,
            )
        if past_key_values is not None and not torch.compiler.is_compiling():
            past_key_values.next_positions = position_ids[..., -1].amax(dim=0) + 1
        cache = past_key_values if use_cache else None
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)

    def _embed_text(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if inputs_embeds is not None:
            return inputs_embeds
        # A prompt is looked through for images that came without pixels; the single tokens of decoding are not, for
        # that would make the device wait at each of them.
        if input_ids is not None and input_ids.shape[1] > 1 and not torch.compiler.is_compiling():
            patch_id = self.config.image_token_id
            if patch_id is not None and torch.eq(input_ids, patch_id).any():
                raise ValueError("input_ids holds an image, but there are no pixel_values")
        return self.embed_tokens(input_ids)

    def _embed_text_and_images(self, input_ids: Tensor, inputs_embeds: Tensor | None, pixel_values: Tensor) -> Tensor:
        tokens = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        patch_index = torch.eq(input_ids.flatten(), self.config.vision_token_ids[1]).nonzero().squeeze(1)
        check_patches(pixel_values, len(patch_index), "the prompt holds")
        return self._add_pixels(tokens.flatten(0, 1), pixel_values, patch_index).view_as(tokens)

    def _derive_positions(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        image_grid_hw: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
    ) -> Tensor:
        if _seen_tokens(past_key_values):
            start = getattr(past_key_values, "next_positions", None)
            if start is None:
                raise ValueError("position_ids are needed to go on from a cache that another model has filled")
            return (start[:, None] + torch.arange(hidden.shape[1], device=hidden.device)).expand(3, -1, -1)
        if input_ids is None:
            input_ids = torch.full(hidden.shape[:2], -1, device=hidden.device)
        grids = [] if image_grid_hw is None else as_grids(image_grid_hw)
        _, patch_id, end_id = self.config.vision_token_ids if grids else (-2, -2, -2)
        return text_and_image_positions(input_ids, grids, patch_id, end_id, attention_mask)


def _seen_tokens(past_key_values: Cache | None) -> int:
    return 0 if past_key_values is None else int(past_key_values.get_seq_length())


def _is_among(ids: Tensor, chosen: list[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(chosen, dtype=ids.dtype, device=ids.device))


class SailForCausalLM(SailPreTrainedModel, SailGenerationMixin):
    """SAIL with its language head: answers questions about an image."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SailConfig) -> None:
        super().__init__(config)
        self.model = SailModel(config)
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
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Predicts the next token at each position.

        Args:
            input_ids: int64 [batch, length]; images appear as `<vision> <vpatch>... </vision>`.
            pixel_values: [total patches, 3 * patch_size**2] of all images, in order.
            image_grid_hw: [images, 2], rows and columns of patches.
            attention_mask: [batch, length], zero at padding.
            position_ids: [3, batch, length] (time, row, column); derived where left out.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: [batch, length, hidden_size] in place of `input_ids`.
            labels: int64 [batch, length], -100 where nothing is to be learned. The tokens of images never count.
            use_cache: Whether to return a cache.
            logits_to_keep: Compute logits for the last so many positions, or for these positions; 0 means all.
            kwargs: Handed to `SailModel.forward` and the loss.

        Returns:
            `logits` [batch, kept, vocab_size], and `loss` where labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_grid_hw=image_grid_hw,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            labels = labels.masked_fill(_is_among(labels, self.config.all_vision_token_ids), -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
