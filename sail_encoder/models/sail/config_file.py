"""Small files of a SAIL checkpoint, published or native, read without weights, torch or transformers."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.files import read_fields
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.io.quantised import refuse_quantised_config, refuse_quantised_tensors

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vision_patch_size": 14,
}
"""Sizes that a config.json may leave out, as in `SailConfig`."""

MOST_LAYERS, LARGEST_SIZE = 1000, 10**6
"""Bounds of what is built, many times those of any published model."""

PATCH_WEIGHTS = ("model.vis_embed.weight", "vis_embed.weight", "single_transformer.model.vis_embed.weight")
"""Names of the patch embedding, published and native, and in a published Pixel-SAIL."""

NATIVE_TYPES = ("sail", "pixel_sail")
QWEN_TYPES = ("qwen", "qwen2")
MODEL_TYPES = (*NATIVE_TYPES, "mistral", *QWEN_TYPES)
"""What config.json gives as `model_type`: of our own files, and of published ones. A Pixel-SAIL is a SAIL with more."""

HEAD_MODULES = ("upsample_blocks", "image_feature_pre_projector", "image_feature_projector", "seg_token_projector")
"""Modules of a Pixel-SAIL's mask head, which lie beside the transformer in published files, and in `mask_head` here."""

MASK_HEAD = rf"^(mask_head\.)?({'|'.join(HEAD_MODULES)})\.|vp_embed\.weight$"
"""Names of what only a Pixel-SAIL has, a regular expression; a SAIL leaves them in its files."""

VISION_TOKENS = {
    "vision_start_token_id": "<vision>",
    "image_token_id": "<vpatch>",
    "vision_end_token_id": "</vision>",
}
"""The tokens that stand for an image, by the name of their id in `SailConfig`."""

UNUSED_VISION_TOKENS = ("<vrow_sep>", "<vframe_sep>", "<|vis_cls|>")
"""Further vision tokens of the vocabulary, which the released models do not use."""


_NOT_OF_SAIL = ("auto_map", "seg_token_id", "visual_prompt_token_ids")
"""Fields of a config.json that are left out: code that is not run, and tokens that only a Pixel-SAIL has."""


def read_config(folder: Path) -> dict[str, Any]:
    """Fields of a checkpoint's config.json in the terms of `SailConfig`.

    A published file says `model_type` "mistral", may lack the patch size, which the patch embedding's shape tells, and
    lacks the ids of the vision tokens, which the tokenizer beside it tells. That of a Pixel-SAIL may say "qwen" too.

    Raises:
        CheckpointError: If there is no such file, or it describes another kind of model.
    """
    fields = read_config_file(folder)
    native = {key: value for key, value in fields.items() if key not in _NOT_OF_SAIL} | {"model_type": "sail"}
    if fields["model_type"] in NATIVE_TYPES:
        return native
    if _lacks_patch_size(fields):
        native["vision_patch_size"] = _stored_patch_size(folder)
    return _token_ids(folder / "tokenizer.json") | native | read_attention(fields)


def read_attention(published: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `SailConfig` for what the attention of a transformer made of Qwen has of its own; none of others."""
    if published["model_type"] not in QWEN_TYPES:
        return {}
    window = published.get("sliding_window") if published.get("use_sliding_window") else None
    return {"attention_bias": True, "sliding_window": window}


def find_described(name: str, revision: str | None = None) -> Path:
    """Folder of a checkpoint with what its configuration needs; see `find_checkpoint`.

    The weights are downloaded only where config.json leaves out the patch size, which they tell.
    """
    folder = find_checkpoint(name, revision, weights=False)
    return find_checkpoint(name, revision) if _lacks_patch_size(read_config_file(folder)) else folder


def read_config_file(folder: Path) -> dict[str, Any]:
    """Fields of a checkpoint's config.json as they stand, published or native.

    Raises:
        CheckpointError: If there is no such file, or it describes another kind of model, or a quantised one.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint; see sail info --help")
    config = read_fields(path)
    model_type = config.get("model_type")
    # A Qwen without patches is a language model alone.
    if model_type not in MODEL_TYPES or (model_type in QWEN_TYPES and "vision_patch_size" not in config):
        raise CheckpointError(
            f"{folder} is a '{model_type}' checkpoint, not SAIL; for a vision model of timm or "
            "transformers use timm/NAME or hf/NAME"
        )
    refuse_quantised_config(config, str(path))
    return config


def read_preprocessing(folder: Path) -> dict[str, Any]:
    """Fields of a checkpoint's image processor, in a file of its own or in that of the whole processor.

    There are none where there is no such file, as beside published checkpoints.

    Raises:
        CheckpointError: If the file is damaged.
    """
    own = read_fields(folder / "preprocessor_config.json")
    whole = {} if own else read_fields(folder / "processor_config.json")
    nested = whole.get("image_processor")
    return nested if isinstance(nested, dict) else own


def missing_patch_weight(folder: Path | str) -> CheckpointError:
    """Error for a checkpoint without a patch embedding."""
    return CheckpointError(
        f"{folder} has no vis_embed.weight: it is not SAIL, or was saved as a plain Mistral, which drops the patch "
        "embedding; get the original files"
    )


def check_loaded(tensors: "Mapping[str, Tensor]", info: Mapping[str, Any], source: Path | str) -> None:
    """Makes sure that transformers has loaded a SAIL, and all of it.

    Args:
        tensors: The weights by name.
        info: What `output_loading_info` gives.
        source: Where they were loaded from.

    Raises:
        CheckpointError: If there is no patch embedding, a weight is NaN or infinite, or a tensor is the scale of a
            quantised one, which the configuration does not name.
    """
    from sail_encoder.io.weights import require_finite

    if any(key.endswith("vis_embed.weight") for key in info["missing_keys"]):
        raise missing_patch_weight(source)
    refuse_quantised_tensors(info["unexpected_keys"], str(source))
    require_finite(tensors, source)


def _lacks_patch_size(config: dict[str, Any]) -> bool:
    return config["model_type"] == "mistral" and "vision_patch_size" not in config


def read_sizes(folder: Path) -> dict[str, int]:
    """Sizes that a checkpoint's config.json names, and in place of those that it leaves out what `SailConfig` takes.

    Raises:
        CheckpointError: If there is no such file, it describes another kind of model, or a size is none.
    """
    config, path = read_config_file(folder), folder / "config.json"
    if _lacks_patch_size(config):
        config["vision_patch_size"] = _stored_patch_size(folder)
    sizes = {field: config.get(field, default) for field, default in DEFAULTS.items()}
    sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or sizes["num_attention_heads"]
    for field, value in sizes.items():
        _check_size(field, value, path)
    sizes["attention_bias"] = bool(config.get("attention_bias", config["model_type"] in QWEN_TYPES))
    sizes["head_dim"] = config.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    _check_size("head_dim", sizes["head_dim"], path)
    return sizes


def _check_size(field: str, value: Any, path: Path) -> None:
    most = MOST_LAYERS if field == "num_hidden_layers" else LARGEST_SIZE
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CheckpointError(f"{path}: {field} cannot be {value!r}; allowed is a whole number from 1 to {most:,}")


def _token_ids(path: Path) -> dict[str, Any]:
    """Ids of the vision tokens that tokenizer.json knows, by their names in `SailConfig`."""
    if not path.is_file():
        return {}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    ids = {name: tokenizer.token_to_id(token) for name, token in VISION_TOKENS.items()}
    unused = [token_id for token in UNUSED_VISION_TOKENS if (token_id := tokenizer.token_to_id(token)) is not None]
    known = {name: token_id for name, token_id in ids.items() if token_id is not None}
    return {**known, "unused_vision_token_ids": unused}


def _stored_patch_size(folder: Path) -> int:
    """Patch size that the shape of the patch embedding tells."""
    for key in PATCH_WEIGHTS:
        shape = stored_shape(folder, key)
        if shape is not None and len(shape) == 2:
            return isqrt(shape[1] // 3)
    raise missing_patch_weight(folder)


def stored_shape(folder: Path, key: str) -> tuple[int, ...] | None:
    """Shape of a tensor, from the header of a safetensors file where there is one; None where there is no tensor."""
    from safetensors import SafetensorError, safe_open

    index = read_fields(folder / "model.safetensors.index.json").get("weight_map")
    file = folder / Path(str(index.get(key)) if isinstance(index, dict) else "model.safetensors").name
    if file.is_file():
        try:
            with safe_open(file, framework="numpy") as opened:
                return tuple(opened.get_slice(key).get_shape()) if key in opened.keys() else None  # noqa: SIM118
        except SafetensorError:
            pass  # the error comes where the file is read as a whole
    # A pickle can only be read by torch.
    from sail_encoder.io.weights import WeightFiles

    stored = WeightFiles(folder).tensors
    return stored[key].shape if key in stored else None
