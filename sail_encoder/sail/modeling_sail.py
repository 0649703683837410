"""SAIL: one transformer that reads raw image patches and text (arXiv 2504.10462).

Notable features:
- Mistral's layers, taken from transformers;
- a patch enters as the embedding of `<vpatch>` plus a linear map of its pixels, there is no vision tower;
- rotary embedding over rows and columns: the faster half of the frequencies rotates by the row, the slower by the
  column;
- attention is full within an image, its two delimiters included, and causal over text.

Two paths lead through the same weights. The encoder path (`encode_images`, in modeling_sail_encoder.py) takes images
alone, packed end to end, without mask, cache or language head, and stops at the deepest layer asked for. The language
path (`SailModel.forward` with `input_ids`) derives the prefix mask from where the images lie; no argument switches it
off.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from sail_encoder.sail.cached_positions import next_positions, remember_offset, seen_tokens
from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.generation import SailGenerationMixin
from sail_encoder.sail.modeling_sail_encoder import SailEncoder, SailPreTrainedModel
from sail_encoder.sail.positions import prompt_positions
from sail_encoder.sail.prefixes import check_patches
from sail_encoder.sail.prompts import find_vision_tokens, holds_images, image_blocks


class SailModel(SailEncoder):
    """The transformer without the language head: a vision backbone, and the trunk of `SailForCausalLM`."""

    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]

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
            image_grid_hw: [images, 2], rows and columns of patches of these images.
            attention_mask: [batch, length], cached tokens included; zero at padding.
            position_ids: [3, batch, length] (time, row, column), or [batch, length] for text, where they may begin anew
                for each of several texts in a row; derived where left out.
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
            ValueError: If there is no input, if image tokens, pixels and grids disagree, or if nothing tells where text
                goes on behind a cache.
        """
        if (pixel_values is None) != (image_grid_hw is None):
            raise ValueError("pixel_values and image_grid_hw [images, 2] go together; only one of them was given")
        if input_ids is None and inputs_embeds is None:
            if pixel_values is None or image_grid_hw is None:
                raise ValueError("there is no input; give input_ids, inputs_embeds, or pixel_values with image_grid_hw")
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
        input_ids, hidden = self._embed(input_ids, inputs_embeds, pixel_values)
        # Texts that are packed into one row are told apart by positions that begin anew.
        text_positions = position_ids if position_ids is not None and position_ids.ndim == 2 else None
        if pixel_values is not None and text_positions is not None:
            raise ValueError(
                "positions [batch, length] would number patches like words; use [3, batch, length] or none"
            )
        position_ids = self._place(input_ids, image_grid_hw, attention_mask, position_ids, past_key_values)
        blocks = None
        if pixel_values is not None:
            blocks = image_blocks(input_ids, self.config.vision_token_ids, seen_tokens(past_key_values))
        mask = create_masks_for_generate(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=text_positions,
            block_sequence_ids=blocks,
        )
        if blocks is not None and mask is None:
            raise ValueError(f"attention '{self.config._attn_implementation}' cannot see images in full; use sdpa")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        cached = {"past_key_values": past_key_values, "use_cache": use_cache}
        hidden = self._run_layers(hidden, position_ids, attention_mask=mask, **cached, **kwargs)
        if past_key_values is not None:
            remember_offset(past_key_values, position_ids)
        cache = past_key_values if use_cache else None
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)

    def _embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ids [batch, length] and embeddings [batch, length, hidden_size]; an id that is not known is -1."""
        if pixel_values is None:
            return self._embed_text(input_ids, inputs_embeds)
        vision_ids = self.config.vision_token_ids
        if input_ids is None:
            input_ids = find_vision_tokens(inputs_embeds, self.embed_tokens.weight, vision_ids)  # type: ignore[arg-type]
        tokens = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        patch_index = torch.eq(input_ids.flatten(), vision_ids[1]).nonzero().squeeze(1)
        check_patches(pixel_values, len(patch_index), "the prompt holds")
        return input_ids, self._add_pixels(tokens.flatten(0, 1), pixel_values, patch_index).view_as(tokens)

    def _embed_text(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        # A prompt is looked through for images that came without pixels; the single tokens of decoding are not, for
        # that would make the device wait at each of them.
        tokens = inputs_embeds if input_ids is None else input_ids
        assert tokens is not None, "forward refuses a call without input"
        is_prompt = tokens.shape[1] > 1 and not torch.compiler.is_compiling()
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_tokens(input_ids)
        elif is_prompt and self.config.image_token_id is not None:
            input_ids = find_vision_tokens(inputs_embeds, self.embed_tokens.weight, self.config.vision_token_ids)
        else:
            input_ids = torch.full(inputs_embeds.shape[:2], -1, device=inputs_embeds.device)
        if is_prompt and holds_images(input_ids, self.config.image_token_id):
            raise ValueError("the prompt holds an image, but there are no pixel_values")
        return input_ids, inputs_embeds

    def _place(
        self,
        input_ids: Tensor,
        image_grid_hw: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Cache | None,
    ) -> Tensor:
        """Positions [3, batch, length]: those given, or else what follows the cache."""
        if position_ids is not None:
            return position_ids.expand(3, -1, -1)
        if attention_mask is not None:
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        start = next_positions(past_key_values, len(input_ids))
        return prompt_positions(input_ids, image_grid_hw, attention_mask, self.config) + start

    def _run_layers(self, hidden: Tensor, position_ids: Tensor, **options: Any) -> Tensor:
        rotary = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids=position_ids, position_embeddings=rotary, **options)
        return hidden


class SailForCausalLM(SailPreTrainedModel, SailGenerationMixin):
    """SAIL with its language head: answers questions about an image."""

    # Trainer would divide by a count of labels that takes in those of images.
    accepts_loss_kwargs = False
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
            image_grid_hw: [images, 2], rows and columns of patches of these images.
            attention_mask: [batch, length], cached tokens included; zero at padding.
            position_ids: [3, batch, length] (time, row, column), or [batch, length] for text; derived where left out.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: [batch, length, hidden_size] in place of `input_ids`.
            labels: int64 [batch, length], -100 where nothing is to be learned. The tokens of images never count.
            use_cache: Whether to return a cache.
            logits_to_keep: Compute logits for the last so many positions, or for these positions; 0 means all.
            kwargs: Handed to `SailModel.forward` and the loss.

        Returns:
            `logits` [batch, kept, vocab_size], and `loss` where labels are given.

        Raises:
            ValueError: As `SailModel.forward`, and if there is no text.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("text needs input_ids or inputs_embeds; SailModel gives features of images alone")
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
            vision_ids = torch.tensor(self.config.all_vision_token_ids, dtype=labels.dtype, device=labels.device)
            labels = labels.masked_fill(torch.isin(labels, vision_ids), -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
