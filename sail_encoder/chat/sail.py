"""SAIL as a chat model: images come before all text of their turn, and see themselves in full."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache

from sail_encoder.chat.engine import Engine, Prefix, Prompt
from sail_encoder.chat.families import SAIL
from sail_encoder.chat.texts import split_after
from sail_encoder.images.decoding import ImageLike, read_image
from sail_encoder.io.errors import explain_damage
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.sail.checkpoint import load_language_model, open_sail
from sail_encoder.models.sail.config_file import read_preprocessing
from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.processing_sail import PLACEHOLDER, SailProcessor


class SailEngine(Engine):
    """Runs SAIL: an image goes through the whole model alone, and what is said continues from its keys and values.

    The content of a `Prefix` is [rows, columns, 3 * patch_size**2], normalised pixels in the memory of the CPU.
    """

    family = SAIL
    images_lead = True
    placeholder = PLACEHOLDER
    markers = ("[INST]", "[/INST]")

    @classmethod
    def load(  # type: ignore[override]
        cls,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_tokens: int | None = None,
        sliding_window: int | Literal["config", "none"] = "config",
    ) -> "SailEngine":
        """Loads a SAIL, or what a subclass runs.

        Args:
            name: `sail-tiny`, a folder, or a Hub name.
            device: Where to.
            dtype: Precision of weights and computation.
            max_tokens: Patches of an image at most; by default the model's own limit.
            sliding_window: How far back text sees: as the configuration says, all the way (`none`), or so many tokens.

        Raises:
            CheckpointError: If the checkpoint cannot be used, or has no language head or tokenizer.
        """
        model, processor = cls._load(name, device, dtype)
        if sliding_window != "config":
            model.config.sliding_window = None if sliding_window == "none" else sliding_window
        if max_tokens is not None:
            processor.image_processor.max_tokens = max_tokens
        return cls(model, processor)

    @classmethod
    def _load(cls, name: str, device: torch.device, dtype: torch.dtype) -> tuple[SailForCausalLM, SailProcessor]:
        """Model and processor as the checkpoint describes them."""
        folder = find_checkpoint(name)
        checkpoint = open_sail(folder)
        model = load_language_model(checkpoint, device, dtype)
        preprocessing = {"patch_size": checkpoint.config.vision_patch_size, **read_preprocessing(folder)}
        with explain_damage(f"cannot read the tokenizer in {folder}"):
            # Code that comes with a checkpoint is never run, and nobody is asked whether to run it.
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return model, SailProcessor(SailImageProcessor(**preprocessing), tokenizer)

    @property
    def image_end_id(self) -> int:
        end: int = self.model.config.vision_token_ids[2]
        return end

    @property
    def end_id(self) -> int:
        end: int = self.processor.tokenizer.eos_token_id
        return end

    def encode(self, image: ImageLike) -> Prefix:
        picture, _ = read_image(image, self.exif_rotate)
        inputs = self.processor.image_processor(picture, return_tensors="pt")
        rows, columns = inputs["image_grid_hw"][0].tolist()
        patches = inputs["pixel_values"].unflatten(0, (rows, columns))
        return Prefix(patches, rows * columns + 2, (picture.height, picture.width))

    def tokenize(self, pieces: Sequence[str], prefixes: Sequence[Prefix]) -> list[int]:
        # As in training, what follows a marker is a text of its own to the tokenizer.
        stretches = split_after(pieces, self.processor.split_turns)
        ids = [token for stretch in stretches for token in self.text.encode(stretch)]
        patch = self.processor.image_token_id
        patches = iter([prefix.tokens - 2 for prefix in prefixes])
        return [token for one in ids for token in ([one] * next(patches) if one == patch else [one])]

    def extend(self, cache: DynamicCache, ids: list[int], prefixes: Sequence[Prefix]) -> DynamicCache:
        device, grids = self.model.device, join_grids(prefixes)
        pixels = torch.cat([prefix.content.flatten(0, 1) for prefix in prefixes]).to(device)
        if cache.get_seq_length() == 0 and len(ids) == prefixes[0].tokens:
            encoded: DynamicCache = self.model.model.encode_prefix(pixels, grids)
            return encoded
        input_ids = torch.tensor([ids], device=device)
        self.model.model(input_ids=input_ids, pixel_values=pixels, image_grid_hw=grids, **{CACHE: cache})
        return cache

    def generation_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        prefixes = [prefix for prompt in prompts for prefix in prompt.prefixes]
        return {"image_grid_hw": join_grids(prefixes) if prefixes else None}


def join_grids(prefixes: Sequence[Prefix]) -> Tensor:
    """int64 [images, 2], rows and columns of patches."""
    return torch.tensor([prefix.content.shape[:2] for prefix in prefixes])
