"""SAIL-VL and SAIL-VL2 as chat models: images are tiles among the text, in the words of the published `chat`."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from sail_encoder.chat.engine import Engine, Prefix, Prompt
from sail_encoder.chat.families import SAIL_VL
from sail_encoder.chat.sampling import Sampling
from sail_encoder.chat.texts import Said
from sail_encoder.images.decoding import ImageLike, read_image
from sail_encoder.io.errors import CheckpointError, UserError, explain_damage
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.sail_vl.checkpoint import load_model, open_sail_vl
from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor
from sail_encoder.models.sail_vl.prompts import IMAGE, expand_images, prepend_frames, prepend_images, request_thinking
from sail_encoder.models.sail_vl.published import END_OF_TURN, IMAGE_TOKEN

IMAGE_START, IMAGE_END = "<img>", "</img>"


class SailVLEngine(Engine):
    """Runs SAIL-VL: tower and projector encode an image once, the language model where it stands in the text.

    The content of a `Prefix` is [tiles, tokens, D], the projected features of its tiles.

    Args:
        model: The model, on its device, in evaluation mode.
        processor: Its processor.
        thinking: Whether to end each question with the published request to think before answering.
    """

    family = SAIL_VL
    placeholder = IMAGE

    def __init__(self, model: Any, processor: SailVLProcessor, thinking: bool = False) -> None:
        super().__init__(model, processor)
        self.thinking = thinking
        self.sampling = Sampling(self.family.longest_answer(thinking))

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
        with explain_damage(f"cannot read the tokenizer in {folder}"):
            processor = SailVLProcessor.from_pretrained(folder, trust_remote_code=False)
        if checkpoint.whole_config().image_token_id is None:
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

    def encode(self, image: ImageLike) -> Prefix:
        [prefix] = self._encode_all([image])
        return prefix

    def encode_frames(self, frames: Sequence[ImageLike]) -> list[Prefix]:
        # Frames are not tiled, whatever the settings for images are (the authors' evaluation code).
        return self._encode_all(frames, is_frame=True, max_tiles=1, msac=False)

    @torch.no_grad()
    def _encode_all(self, images: Sequence[ImageLike], is_frame: bool = False, **options: Any) -> list[Prefix]:
        """Encodes images in one pass of the tower."""
        pictures: list[Image.Image] = [read_image(image, self.exif_rotate)[0] for image in images]
        inputs = self.processor.image_processor(pictures, return_tensors="pt", **options)
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        tiles = self.model.get_image_features(pixels, return_dict=True).pooler_output
        return [
            Prefix(one, len(one) * one.shape[1] + 2, (picture.height, picture.width), is_frame)
            for picture, one in zip(pictures, tiles.split(inputs["num_tiles"].tolist()), strict=True)
        ]

    def compose(self, question: str, prefixes: Sequence[Prefix]) -> str:
        """Words a question with its images where it places them (`<image>`), or else in front of it.

        Raises:
            UserError: If the question places other images than there are.
        """
        placed = question.count(IMAGE)
        if placed and placed != len(prefixes):
            raise UserError(
                f"the prompt places {placed} images ({IMAGE}), but {len(prefixes)} were shown; leave {IMAGE} out to "
                "have them in front"
            )
        prepend = prepend_frames if prefixes and prefixes[0].is_frame else prepend_images
        content = prepend(question, len(prefixes))
        return request_thinking(content) if self.thinking else content

    def tokenize(self, pieces: Sequence[str], prefixes: Sequence[Prefix]) -> list[int]:
        words = [piece for piece in pieces if not isinstance(piece, Said)]
        tiles, per_tile = [len(prefix.content) for prefix in prefixes], self.processor.image_seq_length
        expanded = iter(expand_images(words, tiles, per_tile))
        return self.text.encode([piece if isinstance(piece, Said) else next(expanded) for piece in pieces])

    def extend(self, cache: DynamicCache, ids: list[int], prefixes: Sequence[Prefix]) -> DynamicCache:
        input_ids = torch.tensor([ids], device=self.model.device)
        features = torch.cat([prefix.content for prefix in prefixes]) if prefixes else None
        embeds = self.model.embed_prompt(input_ids, features)
        self.model.language_model.get_decoder()(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        return cache

    def generation_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        # Said by the model, they would stand for images that are not there.
        return {"suppress_tokens": [self._token_id(token) for token in (IMAGE_START, IMAGE_TOKEN, IMAGE_END)]}
