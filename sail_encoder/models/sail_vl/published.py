"""The published layout of SAIL-VL, SAIL-VL2 and SAILViT: names on the Hub, config.json, ids of special tokens.

The files come with code of their own, which is never run: what they say is put into the terms of this package here,
and what this package does not know is refused. Nothing here needs torch or transformers, but for one look into weights
where config.json cannot be believed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.files import read_fields
from sail_encoder.io.hub import find_checkpoint, holds_weights
from sail_encoder.io.quantised import quantised, refuse_quantised_config

ORGANISATION = "BytedanceDouyinContent"
IMAGE_TOKEN = "<IMG_CONTEXT>"
END_OF_TURN = "<|im_end|>"
TEMPLATES = ("sailvl-chat", "univl-chat")
"""Published conversation formats; they are one text under two names."""

LANGUAGE_HEAD = "language_model.lm_head.weight"

TOWERS = {
    "sailvit": "sailvit",
    "aimv2": "sailvit",
    "SAILViTModel": "sailvit",
    "AIMv2Model": "sailvit",
    "internvit": "internvit",
    "intern_vit_6b": "internvit",
    "InternVisionModel": "internvit",
}
"""Name of a tower here for each that published files give it, in `model_type` or `architectures`."""

_TOWER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TOWER_FIELDS = {
    "sailvit": (*_TOWER_SIZES, "image_size", "patch_size", "rms_norm_eps", "qkv_bias", "use_bias"),
    "internvit": (*_TOWER_SIZES, "image_size", "patch_size", "layer_norm_eps", "qkv_bias"),
}
_TOWER_CONSTANTS: dict[str, dict[str, Any]] = {
    "sailvit": {"num_channels": 3},
    "internvit": {
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "qk_normalization": False,
    },
}
"""Settings that are the same in every published file; a file that differs describes another network."""

_TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta"),
)
_TEXT_OPTIONS = (
    *("head_dim", "hidden_act", "attention_bias", "max_position_embeddings", "attention_dropout"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "initializer_range", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)

_TOKEN_LISTS: dict[str, Callable[[dict[str, Any]], Iterable[tuple[Any, Any]]]] = {
    "added_tokens.json": lambda file: file.items(),
    "tokenizer_config.json": lambda file: (
        (entry["content"], key) for key, entry in file.get("added_tokens_decoder", {}).items()
    ),
    "tokenizer.json": lambda file: ((entry["content"], entry["id"]) for entry in file.get("added_tokens", ())),
}
"""Where a tokenizer's files list special tokens and their ids, small files first."""


def hub_name(name: str) -> str:
    """Spells a published name as the Hub does.

    `SAIL-VL-1.5-2B` is `SAIL-VL-1d5-2B` there, and the organisation may be left out. Folders and other names stay as
    they are.

    Raises:
        CheckpointError: If the name is that of a quantised checkpoint.
    """
    if Path(name).expanduser().exists():
        return name
    match = re.fullmatch(rf"(?:{ORGANISATION}/)?(SAIL-?V(?:L|iT)[\w.-]*)", name)
    if match is None:
        return name
    if re.search(r"int[48]\b|awq|gptq|gguf", match[1], re.IGNORECASE):
        raise quantised(name, "by its name")
    return f"{ORGANISATION}/" + re.sub(r"^(SAIL-VL-1)\.(\d)", r"\1d\2", match[1])


def find_described(name: str, revision: str | None = None) -> Path:
    """Finds the folder of a checkpoint, with all its small files; weights are not downloaded."""
    return find_checkpoint(name, revision, weights=False)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: If the file is missing, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is no checkpoint")
    return read_fields(path)


def read_tower(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Reads the sizes of a tower from config.json, published or native.

    Returns:
        Settings of the tower, and those of the whole model as in `SailVLConfig`, None of a tower alone.

    Raises:
        CheckpointError: If it describes something else.
    """
    raw, where = read_json(folder / "config.json"), str(folder / "config.json")
    kind = raw.get("model_type") or next(iter(raw.get("architectures") or ()), None)
    if kind in TOWERS:
        return complete_tower(raw, where), None
    refuse_quantised_config(raw, where)
    whole = raw if raw.get("model_type") == "sail_vl" else complete_config(raw, folder)
    return complete_tower(_part(whole, "vision_config", where), where), dict(whole)


def complete_config(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Turns what a published config.json holds into fields of `SailVLConfig`.

    Raises:
        CheckpointError: If it describes another model, is quantised, or lacks what is needed.
    """
    where = str(folder / "config.json")
    if raw.get("model_type") not in ("internvl_chat", "sailvl"):
        raise CheckpointError(f"{where} describes a '{raw.get('model_type')}', not a SAIL-VL (internvl_chat, sailvl)")
    refuse_quantised_config(raw, where)
    if raw.get("template") not in TEMPLATES:
        raise CheckpointError(f"{where}: template '{raw.get('template')}' is unknown; known are {', '.join(TEMPLATES)}")
    vision = complete_tower(_part(raw, "vision_config", where), where)
    return {
        "model_type": "sail_vl",
        "architectures": ["SailVLForConditionalGeneration"],
        "dtype": raw.get("torch_dtype"),
        "vision_config": vision,
        "text_config": _complete_text(_part(raw, "llm_config", where), folder),
        "image_token_id": find_token_id(folder, IMAGE_TOKEN),
        "tile_size": raw.get("force_image_size") or vision["image_size"],
        **_take(raw, ("select_layer", "ps_version", "downsample_ratio"), where),
    }


def complete_tower(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Turns a `vision_config`, or the config.json of a tower alone, into fields of its configuration.

    Args:
        raw: What is written there.
        where: What to call it in an error.

    Raises:
        CheckpointError: If the tower is unknown or built in another way.
    """
    refuse_quantised_config(raw, where)
    kind = raw.get("model_type") or next(iter(raw.get("architectures") or ()), None)
    tower = TOWERS.get(str(kind))
    if tower is None:
        raise CheckpointError(f"{where}: the tower '{kind}' is unknown; known are {', '.join(TOWERS)}")
    for name, expected in _TOWER_CONSTANTS[tower].items():
        if raw.get(name, expected) != expected:
            raise CheckpointError(f"{where}: a {kind} with {name} {raw[name]!r} is not supported, only {expected!r}")
    options = {name: raw[name] for name in ("initializer_range", "initializer_factor") if name in raw}
    dtype = {"dtype": raw.get("dtype", raw.get("torch_dtype"))}
    return {"model_type": tower, **_take(raw, _TOWER_FIELDS[tower], where), **options, **dtype}


def _complete_text(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    where = f"{folder / 'config.json'}, llm_config"
    kind = raw.get("model_type")
    if kind not in ("qwen2", "qwen3"):
        raise CheckpointError(f"{where}: the language model '{kind}' is unknown; known are qwen2, qwen3")
    fields = _take(raw, _TEXT_SIZES, where)
    scaling = raw.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    rope = {**scaling, "rope_type": rope_type, "rope_theta": fields.pop("rope_theta")}
    options = {name: raw[name] for name in _TEXT_OPTIONS if name in raw}
    # Generation ends where a turn does, as in the published `chat`, whatever llm_config says.
    if (end := find_token_id(folder, END_OF_TURN)) is not None:
        options["eos_token_id"] = end
    tied = bool(options.get("tie_word_embeddings")) and not _has_language_head(folder)
    return {"model_type": kind, **fields, **options, "rope_parameters": rope, "tie_word_embeddings": tied}


def _has_language_head(folder: Path) -> bool:
    """Tells whether the weights hold a language head of their own, as all published ones do.

    SAIL-VL2 says `tie_word_embeddings` all the same. A model that believes it loads without complaint and overwrites
    the head with the embedding, or the other way round.
    """
    index = next(folder.glob("*.index.json"), None)
    if index is not None:
        return LANGUAGE_HEAD in read_json(index).get("weight_map", {})
    if not holds_weights(folder):
        return True
    from sail_encoder.io.weights import WeightFiles

    return LANGUAGE_HEAD in WeightFiles(folder).tensors


def find_token_id(folder: Path, token: str) -> int | None:
    """Finds the id of a special token in the tokenizer's files, None where they do not tell.

    The files are read as JSON, so that no tokenizer needs to be built.
    """
    for name, list_tokens in _TOKEN_LISTS.items():
        if (folder / name).is_file():
            for content, token_id in list_tokens(read_json(folder / name)):
                if content == token:
                    return int(token_id)
    return None


def read_preprocessing(folder: Path, tile_size: int) -> dict[str, Any]:
    """Options of the image processor that preprocessor_config.json holds, if there is one, in the terms used here.

    The limit of tiles that config.json names was one of training; the published calls use the processor's.
    """
    path = folder / "preprocessor_config.json"
    raw = read_json(path) if path.is_file() else {}
    names = {"max_dynamic_patch": "max_tiles", "use_msac": "msac", "image_mean": "image_mean", "image_std": "image_std"}
    options = {here: raw[there] for there, here in names.items() if there in raw}
    return {**options, "size": {"height": tile_size, "width": tile_size}}


def _part(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    part = raw.get(name)
    if not isinstance(part, dict):
        raise CheckpointError(f"{where} has no {name}; download it again")
    return part


def _take(raw: Mapping[str, Any], names: Iterable[str], where: str) -> dict[str, Any]:
    """Settings of these names; none may be missing, for the published classes' defaults are not what was trained."""
    missing = [name for name in names if raw.get(name) is None]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; download it again")
    return {name: raw[name] for name in names}
