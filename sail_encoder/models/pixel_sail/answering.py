"""Answers with masks: what a question, an image and a region are to a Pixel-SAIL, and what it says."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchFeature, DynamicCache

from sail_encoder.images.decoding import Array, ImageLike, read_image
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError
from sail_encoder.models.cache_name import CACHE, fork_cache
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
from sail_encoder.models.pixel_sail.questions import check_question
from sail_encoder.models.pixel_sail.regions import Region, read_region
from sail_encoder.models.pixel_sail.tokens import PHRASE_TOKENS, VISUAL_PROMPTS


@torch.no_grad()
def answer_with_masks(
    model: PixelSailForCausalLM,
    processor: PixelSailProcessor,
    image: ImageLike,
    prompt: str,
    region: Region | None = None,
    *,
    answer_start: str = "",
    max_new_tokens: int = 512,
    **options: Any,
) -> tuple[str, Array]:
    """Answers a question about an image, with a mask for each `[SEG]` in the answer.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor.
        image: The image.
        prompt: The question; `questions.refer` words one that asks for a mask.
        region: What `<Prompt0>` in the question names.
        answer_start: How the answer begins; a `[SEG]` in it counts.
        max_new_tokens: Tokens at most that are added to it.
        options: Further options of `generate`; by default the likeliest token is taken each time.

    Returns:
        The answer, its beginning included, and bool [q, height, width] at the size of the image.

    Raises:
        ImageError: If the image, or the mask of a region, cannot be read.
        UserError: If question or region cannot be used, or there is no room for an answer.
    """
    picture, _ = read_image(image)
    size = picture.height, picture.width
    check_question(prompt, region is not None)
    mask = None if region is None else read_region(region, size)
    question = _encode_question(processor, picture, prompt, mask).to(model.device)
    grid, asked = question["image_grid_hw"], question["input_ids"]
    start = processor.tokenizer(answer_start, add_special_tokens=False, return_tensors="pt")["input_ids"]
    begun = torch.cat((asked, start.to(asked)), dim=1)
    options = {"do_sample": False, "pad_token_id": processor.tokenizer.pad_token_id, **options}
    options["max_new_tokens"] = min(max_new_tokens, _room(model, begun))
    cache, patch_features = model.model.encode_image(question["pixel_values"], grid, question.get("visual_prompts"))
    inputs = {"input_ids": begun, "attention_mask": torch.ones_like(begun), "image_grid_hw": grid}
    said = model.generate(**inputs, **{CACHE: fork_cache(cache)}, **options)
    answer = said[0, asked.shape[1] :].tolist()
    return read_answer(answer, model, processor), predict_masks(model, cache, patch_features, said, len(answer), size)


def _encode_question(processor: PixelSailProcessor, picture: Any, prompt: str, mask: Array | None) -> BatchFeature:
    """Inputs of the model, up to where an answer begins."""
    _refuse_special_tokens(prompt, processor)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    regions = None if mask is None else [{0: mask}]
    return processor(images=[picture], text=text, regions=regions, return_tensors="pt")


def _refuse_special_tokens(prompt: str, processor: PixelSailProcessor) -> None:
    """Raises a `UserError` if a question holds a token of the chat format, which would end it early."""
    said = {*PHRASE_TOKENS, *VISUAL_PROMPTS}
    for token in processor.tokenizer.get_added_vocab().keys() - said:
        if token in prompt:
            raise UserError(f"the question holds {token}, a token of the format of conversations; leave it out")


def _room(model: PixelSailForCausalLM, input_ids: Tensor) -> int:
    """Tokens that an answer may have."""
    room: int = model.config.max_position_embeddings - input_ids.shape[1]
    if room < 1:
        raise UserError(
            f"the question has {input_ids.shape[1]:,} tokens with its image, more than the "
            f"{model.config.max_position_embeddings:,} of this model; shorten it or make the image smaller"
        )
    return room


def read_answer(ids: list[int], model: PixelSailForCausalLM, processor: PixelSailProcessor) -> str:
    """Text of an answer, `[SEG]` and all, without the token that ended it."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    text: str = processor.decode(ids[:-1] if ids[-1:] and ids[-1] in ends else ids, skip_special_tokens=False)
    return text.strip()


@torch.no_grad()
def predict_masks(
    model: PixelSailForCausalLM,
    cache: DynamicCache,
    patch_features: Tensor,
    input_ids: Tensor,
    answer_length: int,
    image_size: Size,
) -> Array:
    """Computes the masks of an answer, one per `[SEG]` in it.

    Args:
        model: The model.
        cache: Keys and values of the image, as from `PixelSailModel.encode_image`; those of the text are added.
        patch_features: [nh, nw, hidden_size], likewise.
        input_ids: int64 [1, length], the conversation with the answer at its end.
        answer_length: Tokens of the answer.
        image_size: (height, width) of the image.

    Returns:
        bool [q, height, width].
    """
    seg_id, _ = model.config.pixel_token_ids
    start = input_ids.shape[1] - answer_length
    if seg_id not in input_ids[0, start:].tolist():
        return np.zeros((0, *image_size), bool)
    logits = model.mask_logits(patch_features, model.seg_hidden_states(input_ids, cache, start))
    return resize_masks(logits, image_size)


def resize_masks(logits: Tensor, image_size: Size) -> Array:
    """Masks at the size of an image, bool [q, height, width], from logits [q, H, W]."""
    resized = F.interpolate(logits[None].float(), size=image_size, mode="bilinear", align_corners=False)[0]
    masks: Array = (resized > 0).cpu().numpy()
    return masks
