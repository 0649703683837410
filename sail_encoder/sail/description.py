"""Sizes of a SAIL checkpoint, from its small files alone: no weights are read, and neither torch nor transformers."""

import json
from math import isqrt
from pathlib import Path
from typing import Any

from sail_encoder.errors import CheckpointError
from sail_encoder.hub import RAW, TIMM, TINY, find_checkpoint
from sail_encoder.resizing import MAX_TOKENS, Resize
from sail_encoder.spec import BackboneSpec

DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vision_patch_size": 14,
}
"""Sizes that a config.json may leave out, as in `SailConfig`."""

PATCH_WEIGHTS = ("model.vis_embed.weight", "vis_embed.weight")
"""Names of the patch embedding, published and native."""

VISION_TOKENS = {
    "vision_start_token_id": "<vision>",
    "image_token_id": "<vpatch>",
    "vision_end_token_id": "</vision>",
}
"""The tokens that stand for an image, by the name of their id in `SailConfig`."""


def describe_sail(name: str, revision: str | None = None) -> BackboneSpec:
    """Reads the sizes of a SAIL checkpoint; see `describe`.

    The weights of a published one are downloaded only where config.json leaves out the patch size, which they tell.

    Raises:
        CheckpointError: If there is no such checkpoint, or a file of it describes something else.
    """
    if name.startswith((TIMM, RAW)):
        raise CheckpointError(f"{name} is no SAIL checkpoint; use {TINY}, a folder, or a Hub name")
    folder = find_checkpoint(name, revision, weights=False)
    config = read_config_file(folder)
    if config["model_type"] == "mistral" and "vision_patch_size" not in config:
        folder = find_checkpoint(name, revision)
        config["vision_patch_size"] = _stored_patch_size(folder)
    sizes = _read_sizes(config, folder / "config.json")
    width = sizes["hidden_size"]
    attention_dim = sizes["num_attention_heads"] * sizes["head_dim"]
    key_value_dim = sizes["num_key_value_heads"] * sizes["head_dim"]
    return BackboneSpec(
        name=name,
        kind="SAIL",
        patch_size=sizes["vision_patch_size"],
        embed_dim=width,
        num_layers=sizes["num_hidden_layers"],
        block_parameters=width * (2 * attention_dim + 2 * key_value_dim + 3 * sizes["intermediate_size"] + 2),
        # The patch embedding, three vision tokens and the final norm.
        other_parameters=width * (3 * sizes["vision_patch_size"] ** 2 + 3 + 1),
        attention_dim=attention_dim,
        extra_tokens=2,
        resize=_read_resize(folder / "preprocessor_config.json"),
    )


def read_config_file(folder: Path) -> dict[str, Any]:
    """The config.json of a SAIL checkpoint as it stands, published (`mistral`) or native (`sail`).

    Raises:
        CheckpointError: If there is none, or it describes another kind of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint; see sail info --help")
    config = _read_json(path)
    model_type = config.get("model_type")
    if model_type not in ("sail", "mistral"):
        raise CheckpointError(f"{folder} is a '{model_type}' checkpoint, not SAIL; for a timm model use timm/NAME")
    return config


def resize_rule(preprocessing: dict[str, Any]) -> Resize:
    """How a checkpoint's preprocessor_config.json brings images to size; published ones have none."""
    size = preprocessing.get("size")
    fixed = (size["height"], size["width"]) if size else None
    return Resize(fixed, preprocessing.get("max_tokens", MAX_TOKENS))


def _read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no fields; download it again")
    return fields


def _read_resize(path: Path) -> Resize:
    fields = _read_json(path)
    try:
        return resize_rule(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no size that can be used ({error!r}); download it again") from None


def _read_sizes(config: dict[str, Any], path: Path) -> dict[str, int]:
    """The sizes that are in a configuration, and in place of those that are not what `SailConfig` would take."""
    sizes = {field: config.get(field, default) for field, default in DEFAULTS.items()}
    sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or sizes["num_attention_heads"]
    for field, value in sizes.items():
        _check_size(field, value, path)
    sizes["head_dim"] = config.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    _check_size("head_dim", sizes["head_dim"], path)
    return sizes


def _check_size(field: str, value: Any, path: Path) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {field} cannot be {value!r}; allowed is a whole number from 1")


def _stored_patch_size(folder: Path) -> int:
    """The patch size that the weights tell: from the header of a safetensors file, or else as `SailConfig` reads it."""
    index = _read_json(folder / "model.safetensors.index.json").get("weight_map")
    for key in PATCH_WEIGHTS:
        name = str(index.get(key)) if isinstance(index, dict) else "model.safetensors"
        shape = _stored_shape(folder / Path(name).name, key)
        if shape is not None and len(shape) == 2:
            return isqrt(shape[1] // 3)
    from sail_encoder.sail.configuration_sail import SailConfig

    return int(SailConfig.from_pretrained(folder).vision_patch_size)


def _stored_shape(file: Path, key: str) -> list[int] | None:
    """The shape of a tensor in a safetensors file; None where there is none."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as opened:
            return list(opened.get_slice(key).get_shape()) if key in opened.keys() else None  # noqa: SIM118
    except SafetensorError:
        return None
