"""SAIL-VL and SAIL-VL2 as chat models: images are tiles among the text, in the words of the published `chat`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from sail_encoder.chat.engine import Engine, Prefix, Prompt, explain_tokenizer
from sail_encoder.chat.families import SAIL_VL
from sail_encoder.chat.texts import Said
from sail_encoder.images.decoding import ImageLike, read_image
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.sail_vl.checkpoint import load_model, open_sail_vl
from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor
from sail_encoder.models.sail_vl.prompts import (
    IMAGE,
    SYSTEM_TEXT,
    expand_images,
    prepend_frames,
    prepend_images,
    request_thinking,
)
from sail_encoder.models.sail_vl.published import END_OF_TURN, IMAGE_TOKEN

IMAGE_START, IMAGE_END = "<img>", "</img>"


@dataclass(frozen=True, eq=False, kw_only=True)
class SailVLPrefix(Prefix):
    """An image as the language model receives it.

    Attributes:
        features: [tiles, tokens, D], the projected features of its tiles.
    """

    features: Tensor


class SailVLEngine(Engine):
    """Runs SAIL-VL: tower and projector encode an image once, the language model where it stands in the text."""

    family = SAIL_VL
    image_limit = "max_tiles"

    def __init__(self, model: Any, processor: SailVLProcessor, thinking: bool = False) -> None:
        super().__init__(model, processor)
        self.thinking = thinking

    @classmethod
    def load(  # type: ignore[override]
        cls,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_tiles: int | None = None,
        thinking: bool = False,
    ) -> "SailVLEngine":
        """Loads a SAIL-VL or SAIL-VL2.

        Args:
            name: A folder, or a Hub name.
            device: Where to.
            dtype: Precision of weights and computation.
            max_tiles: Tiles of an image at most, without the thumbnail; by default the model's own limit.
            thinking: Whether to end each question with the published request to think before answering.

        Raises:
            CheckpointError: If the checkpoint cannot be used, or has no tokenizer.
        """
        folder = find_checkpoint(name)
        checkpoint = open_sail_vl(folder)
        with explain_tokenizer(folder):
            processor = SailVLProcessor.from_pretrained(folder)
        if checkpoint.config.image_token_id is None:
            raise CheckpointError(f"{folder} has no tokenizer with {IMAGE_TOKEN}, which chat needs; get the original")
        if max_tiles is not None:
            processor.image_processor.max_tiles = max_tiles
        return cls(load_model(checkpoint, device, dtype), processor, thinking)

    @property
    def image_end_id(self) -> int:
        return self._token_id(IMAGE_END)

    @property
    def end_id(self) -> int:
        return self._token_id(END_OF_TURN)

    def _token_id(self, token: str) -> int:
        token_id: int = self.processor.tokenizer.convert_tokens_to_ids(token)
        return token_id

    def prepare_image(self, image: Image.Image) -> SailVLPrefix:
        [features] = self._project([image])
        return SailVLPrefix(_count_tokens(features), (image.height, image.width), features=features)

    def encode_frames(self, frames: Sequence[ImageLike]) -> list[Prefix]:
        images = [read_image(frame, self.exif_rotate)[0] for frame in frames]
        # Frames are not tiled, whatever the settings for images are (the authors' evaluation code).
        return [
            SailVLPrefix(_count_tokens(features), (image.height, image.width), is_frame=True, features=features)
            for image, features in zip(images, self._project(images, max_tiles=1, msac=False), strict=True)
        ]

    @torch.no_grad()
    def _project(self, images: list[Image.Image], **options: Any) -> list[Tensor]:
        """Features [tiles, tokens, D] of each image, all of them in one pass."""
        inputs = self.processor.image_processor(images, return_tensors="pt", **options)
        pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
        features = self.model.get_image_features(pixels, return_dict=True).pooler_output
        return list(features.split(inputs["num_tiles"].tolist()))

    def tokenize_turn(
        self, question: str, prefixes: Sequence[Prefix], is_first: bool, answer: str | None = None
    ) -> list[int]:
        pieces = [f"<|im_start|>system\n{SYSTEM_TEXT}{END_OF_TURN}"] if is_first else []
        pieces += ["<|im_start|>user\n", *self._word_question(question, prefixes)]
        pieces += [request_thinking("")] if self.thinking else []
        pieces += [f"{END_OF_TURN}<|im_start|>assistant\n"]
        return self.text.encode(pieces if answer is None else [*pieces, Said(answer), END_OF_TURN])

    def _word_question(self, question: str, prefixes: Sequence[Any]) -> list[str]:
        """The question, with its images where it places them, or else in front."""
        tiles, per_tile = [len(prefix.features) for prefix in prefixes], self.processor.image_seq_length
        if IMAGE not in question:
            prepend = prepend_frames if prefixes and prefixes[0].is_frame else prepend_images
            return [*expand_images([prepend("", len(prefixes))], tiles, per_tile), Said(question)]
        first, *texts = question.split(IMAGE)
        if len(texts) != len(prefixes):
            raise UserError(
                f"the prompt places {len(texts)} images ({IMAGE}), but {len(prefixes)} were shown; leave {IMAGE} out "
                "to have them in front"
            )
        images = expand_images([IMAGE] * len(tiles), tiles, per_tile)
        return [Said(first), *(piece for pair in zip(images, map(Said, texts), strict=True) for piece in pair)]

    def fill(self, cache: DynamicCache, ids: list[int], prefixes: Sequence[Any]) -> DynamicCache:
        input_ids = torch.tensor([ids], device=self.device)
        features = torch.cat([prefix.features for prefix in prefixes]) if prefixes else None
        embeds = self.model.embed_prompt(input_ids, features)
        self.model.language_model.get_decoder()(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        return cache

    def generation_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        # Said by the model, they would stand for images that are not there.
        return {"suppress_tokens": [self._token_id(token) for token in (IMAGE_START, IMAGE_TOKEN, IMAGE_END)]}


def _count_tokens(features: Tensor) -> int:
    return features.shape[0] * features.shape[1] + 2
