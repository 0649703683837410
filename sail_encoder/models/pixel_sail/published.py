"""The published layout of Pixel-SAIL, read without torch or transformers.

config.json is that of the single transformer alone. Its names in the weights begin with `single_transformer.`, and the
mask head lies beside it; the sizes of the head are those of its tensors, the ids of the added tokens those of the
tokenizer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.hub import TINY, TINY_FOLDER, find_checkpoint, holds_weights
from sail_encoder.io.quantised import refuse_quantised_config
from sail_encoder.models.pixel_sail.tokens import SEG, VISUAL_PROMPTS
from sail_encoder.models.sail.config_file import (
    QWEN_TYPES,
    UNUSED_VISION_TOKENS,
    VISION_TOKENS,
    read_attention,
    stored_shape,
)
from sail_encoder.models.sail_vl.published import find_token_id, read_json

TRANSFORMER = "single_transformer."
"""What the names of the single transformer begin with."""

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end an answer of the models that are made of Qwen."""

_PUBLISHED = (*QWEN_TYPES, "mistral")
_BASES = (*_PUBLISHED, "sail")
"""What config.json may give as `model_type` of the single transformer."""

_UPSAMPLING = "upsample_blocks.0.0.weight"
_LAST_PROJECTION = "image_feature_projector.2.weight"


def is_pixel_sail(folder: Path) -> bool:
    """Tells whether a checkpoint is a Pixel-SAIL: it says so, or is a transformer with a mask head in its weights."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind == "pixel_sail":
        return True
    return kind in _BASES and holds_weights(folder) and stored_shape(folder, _UPSAMPLING) is not None


def names_pixel_sail(name: str | Path) -> bool:
    """Tells whether a name is that of a Pixel-SAIL on this machine; nothing is asked of the Hub."""
    folder = TINY_FOLDER if str(name) == TINY else Path(name)
    return (folder / "config.json").is_file() and is_pixel_sail(folder)


def find_described(name: str, revision: str | None = None) -> Path:
    """Folder of a checkpoint with what its configuration needs: of a published one the weights too."""
    folder = find_checkpoint(name, revision, weights=False)
    is_native = read_json(folder / "config.json").get("model_type") == "pixel_sail"
    return folder if is_native else find_checkpoint(name, revision)


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """Fields of a checkpoint's config.json in the terms of `PixelSailConfig`, published or native.

    Raises:
        CheckpointError: If there is no such checkpoint, or it is no Pixel-SAIL.
    """
    folder = find_described(name, revision)
    fields = read_json(folder / "config.json")
    refuse_quantised_config(fields, str(folder / "config.json"))
    return fields if fields.get("model_type") == "pixel_sail" else complete_config(fields, folder, name)


def complete_config(raw: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """Turns a published config.json into fields of `PixelSailConfig`.

    Args:
        raw: What is written there.
        folder: Where it is, with weights and tokenizer.
        name: What to call the checkpoint in an error.

    Raises:
        CheckpointError: If there is no mask head beside it, it describes another transformer, or token ids are unknown.
    """
    kind = raw.get("model_type")
    upsampling = stored_shape(folder, _UPSAMPLING) if kind in _BASES else None
    projection = stored_shape(folder, _LAST_PROJECTION) if kind in _BASES else None
    if upsampling is None or projection is None:
        raise CheckpointError(
            f"{name} is a '{kind}' checkpoint without mask head, no Pixel-SAIL; train one from a SAIL, see "
            "docs/pixel-sail.md"
        )
    fields = {name: value for name, value in raw.items() if name != "auto_map"}
    changes = {
        "model_type": "pixel_sail",
        "architectures": ["PixelSailForCausalLM"],
        **read_attention(raw),
        "head_channels": upsampling[0],
        "mask_channels": projection[0],
        **_token_ids(folder),
    }
    if kind in QWEN_TYPES:
        ends = [token_id for token in END_TOKENS if (token_id := find_token_id(folder, token)) is not None]
        changes["eos_token_id"] = ends or raw.get("eos_token_id")
    return fields | changes


def _token_ids(folder: Path) -> dict[str, Any]:
    """Ids of the tokens of images, masks and regions, by their names in `PixelSailConfig`."""
    vision = {field: _required_id(folder, token) for field, token in VISION_TOKENS.items()}
    unused = [find_token_id(folder, token) for token in UNUSED_VISION_TOKENS]
    return {
        **vision,
        "unused_vision_token_ids": [token_id for token_id in unused if token_id is not None],
        "seg_token_id": _required_id(folder, SEG),
        "visual_prompt_token_ids": [_required_id(folder, token) for token in VISUAL_PROMPTS],
    }


def _required_id(folder: Path, token: str) -> int:
    token_id = find_token_id(folder, token)
    if token_id is None:
        raise CheckpointError(f"{folder}: no tokenizer file knows {token}; keep the tokenizer beside the weights")
    return token_id
