"""What the published SAIL checkpoints leave unsaid in their config.json, and where else it is written."""

import json
import math
from pathlib import Path
from typing import Any

from sail_encoder.errors import CheckpointError
from sail_encoder.hub import find_checkpoint
from sail_encoder.sail.description import PATCH_WEIGHTS as PATCH_WEIGHTS
from sail_encoder.sail.description import VISION_TOKENS
from sail_encoder.weights import WeightFiles

UNUSED_VISION_TOKENS = ("<vrow_sep>", "<vframe_sep>", "<|vis_cls|>")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json in the terms of `SailConfig`, published or native.

    A published file says `model_type` "mistral", may lack the patch size, which the patch embedding's shape tells, and
    lacks the ids of the vision tokens, which the tokenizer beside it tells.

    Raises:
        CheckpointError: If there is no such file, or it describes another kind of model.
    """
    return complete_config(_read_json(folder), folder)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint; see sail info --help")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    return raw


def find_described(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint with what its configuration needs; see `find_checkpoint`.

    The weights are downloaded only where config.json leaves out the patch size, which they tell.
    """
    folder = find_checkpoint(name, revision, weights=False)
    raw = _read_json(folder)
    complete = raw.get("model_type") == "sail" or "vision_patch_size" in raw
    return folder if complete else find_checkpoint(name, revision)


def complete_config(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Turns what config.json holds into fields of `SailConfig`."""
    model_type = raw.get("model_type")
    if model_type == "sail":
        return raw
    if model_type != "mistral":
        raise CheckpointError(f"{folder} is a '{model_type}' checkpoint, not SAIL; for a timm model use timm/NAME")
    native = {key: value for key, value in raw.items() if key != "auto_map"} | {"model_type": "sail"}
    if "vision_patch_size" not in native:
        native["vision_patch_size"] = _patch_size(folder)
    return _token_ids(folder) | native


def _patch_size(folder: Path) -> int:
    tensors = WeightFiles(folder).tensors
    for key in PATCH_WEIGHTS:
        if key in tensors:
            return math.isqrt(tensors[key].shape[1] // 3)
    raise missing_patch_weight(folder)


def _token_ids(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    ids = {name: tokenizer.token_to_id(token) for name, token in VISION_TOKENS.items()}
    unused = [token_id for token in UNUSED_VISION_TOKENS if (token_id := tokenizer.token_to_id(token)) is not None]
    known = {name: token_id for name, token_id in ids.items() if token_id is not None}
    return {**known, "unused_vision_token_ids": unused}


def missing_patch_weight(folder: Path | str) -> CheckpointError:
    """The error for a checkpoint without a patch embedding."""
    return CheckpointError(
        f"{folder} has no vis_embed.weight: it is not SAIL, or was saved as a plain Mistral, which drops the patch "
        "embedding; get the original files"
    )
