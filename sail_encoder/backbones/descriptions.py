"""Sizes of backbones from their small files alone: no weights are read, and neither torch nor transformers imported."""

from pathlib import Path
from typing import Any

from PIL import Image

from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD
from sail_encoder.images.resizing import MAX_TOKENS, Resize
from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.hub import HF, RAW, TIMM, TINY
from sail_encoder.models.sail.config_file import find_described, read_preprocessing, read_sizes


def describe_sail(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads the sizes of a SAIL checkpoint.

    Raises:
        CheckpointError: If there is no such checkpoint, or a file of it describes something else.
    """
    if name.startswith((TIMM, HF, RAW)):
        raise CheckpointError(f"{name} is no SAIL checkpoint; use {TINY}, a folder, or a Hub name")
    folder = find_described(name, revision)
    sizes = read_sizes(folder)
    width, patch_size = sizes["hidden_size"], sizes["vision_patch_size"]
    attention_dim = sizes["num_attention_heads"] * sizes["head_dim"]
    key_value_dim = sizes["num_key_value_heads"] * sizes["head_dim"]
    return BackboneSpec(
        name=name,
        family="sail",
        patch_size=patch_size,
        embed_dim=width,
        num_layers=sizes["num_hidden_layers"],
        block_parameters=width * (2 * attention_dim + 2 * key_value_dim + 3 * sizes["intermediate_size"] + 2),
        # The patch embedding, three vision tokens and the final norm.
        other_parameters=width * (3 * patch_size**2 + 3 + 1),
        attention_dim=attention_dim,
        extra_tokens=2,
        **_preprocessing(folder),
    )


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Fields of a `BackboneSpec` that preprocessor_config.json tells."""
    fields = read_preprocessing(folder)
    try:
        size = fields.get("size")
        fixed = (size["height"], size["width"]) if size else None
        return {
            "resize": Resize(fixed, fields.get("max_tokens", MAX_TOKENS)),
            "resample": Image.Resampling(fields.get("resample", Image.Resampling.BILINEAR)).name,
            "image_mean": tuple(fields.get("image_mean", IMAGENET_MEAN)),
            "image_std": tuple(fields.get("image_std", IMAGENET_STD)),
        }
    except (KeyError, TypeError, ValueError) as error:
        path = folder / "preprocessor_config.json"
        raise CheckpointError(f"{path} has no size that can be used ({error!r}); download it again") from None


def describe_raw(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads the size of raw patches from `raw/` and their side in pixels.

    Raises:
        CheckpointError: If that is no number from 1.
    """
    text = name.removeprefix(RAW)
    if not text.isdecimal() or int(text) < 1:
        raise CheckpointError(f"no raw patches '{name}'; give their side in pixels, such as raw/14")
    side = int(text)
    return BackboneSpec(name=name, family="raw", patch_size=side, embed_dim=3 * side**2, num_layers=1)
