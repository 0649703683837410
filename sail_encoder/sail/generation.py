"""What `generate` has to know about images: their positions, mask and copies, and that they are never an answer."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.utils import ModelOutput

from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.positions import prompt_positions
from sail_encoder.sail.prompts import find_vision_tokens, holds_images


class SailGenerationMixin(GenerationMixin):
    """`GenerationMixin` for prompts with images.

    All positions are derived from the whole prompt and `image_grid_hw` at the start, so nothing about an image is
    remembered between calls. A prompt whose beginning is in `past_key_values` already is continued by passing all its
    ids and grids, and the pixels of new images alone.
    """

    config: SailConfig

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        ids, grids = model_kwargs.get("input_ids", inputs_tensor), model_kwargs.get("image_grid_hw")
        if grids is None:
            if model_kwargs.get("pixel_values") is not None or holds_images(ids, self.config.image_token_id):
                raise ValueError("a prompt with images needs image_grid_hw [images, 2], also for images in the cache")
            text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
            return text.expand(3, *text.shape)
        ids = self._prompt_ids(ids, model_kwargs.get("inputs_embeds"))
        return prompt_positions(ids, grids, model_kwargs.get("attention_mask"), self.config)

    def _prompt_ids(self, input_ids: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        """Ids of the whole prompt; of an embedded one those of its vision tokens."""
        if inputs_embeds is None or input_ids.shape[1]:
            return input_ids
        return find_vision_tokens(inputs_embeds, self.get_input_embeddings().weight, self.config.vision_token_ids)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one step; see transformers."""
        if isinstance(past_key_values, DynamicCache) and past_key_values.get_seq_length() == 0:
            # transformers leaves this out for an assistant model, which then would not see the image.
            is_first_iteration = True
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if inputs.get("pixel_values") is not None:
            # For static caches transformers has already built a mask that ignores images; forward builds the right one.
            inputs["attention_mask"] = attention_mask
        else:
            inputs.pop("image_grid_hw", None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        pixels, grids, positions = (
            kwargs.pop(name, None) for name in ("pixel_values", "image_grid_hw", "position_ids")
        )
        if expand_size > 1 and grids is not None and input_ids is not None:
            ids = self._prompt_ids(input_ids, kwargs.get("inputs_embeds"))
            pixels, grids = _repeat_images(ids, pixels, grids, expand_size, self.config.vision_token_ids[0])
        if expand_size > 1 and positions is not None:
            positions = positions.repeat_interleave(expand_size, dim=-2)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        given = {"pixel_values": pixels, "image_grid_hw": grids, "position_ids": positions}
        return input_ids, {**kwargs, **{name: value for name, value in given.items() if value is not None}}

    def generate(
        self, *args: Any, logits_processor: LogitsProcessorList | None = None, **kwargs: Any
    ) -> Tensor | ModelOutput:
        """Generates as in transformers; vision tokens are never sampled."""
        processors = LogitsProcessorList(logits_processor or [])
        if vision_ids := self.config.all_vision_token_ids:
            processors.append(SuppressTokensLogitsProcessor(vision_ids, device=self.device))
        return super().generate(*args, logits_processor=processors, **kwargs)


def _repeat_images(
    input_ids: Tensor, pixels: Tensor | None, grids: Tensor, times: int, start_id: int
) -> tuple[Tensor | None, Tensor]:
    """Repeats all images of each prompt, as often as the prompt is repeated."""
    images_per_prompt = torch.eq(input_ids, start_id).sum(dim=1).tolist()
    parts = grids.split(images_per_prompt)
    repeated = torch.cat([part for part in parts for _ in range(times)])
    if pixels is None:
        return None, repeated
    patches = [int(part.prod(dim=1).sum()) for part in parts]
    return torch.cat([part for part in pixels.split(patches) for _ in range(times)]), repeated
