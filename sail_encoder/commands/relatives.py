"""Relatives of SAIL in the format of transformers: read whole as they were published, and saved."""

from importlib import import_module
from pathlib import Path
from typing import Any

from sail_encoder.backbones import published
from sail_encoder.backbones.published import published_name
from sail_encoder.commands import cards
from sail_encoder.commands.cards import CardKind
from sail_encoder.io.errors import explain_damage
from sail_encoder.io.hub import HF, RAW, TIMM, TINY, find_checkpoint
from sail_encoder.models.pixel_sail.published import is_pixel_sail
from sail_encoder.models.sail_vl.published import TOWERS, hub_name, read_json

SAIL_VL, TOWER, PIXEL_SAIL = "sail_vl", "tower", "pixel_sail"
"""Kinds of relatives."""

_SAIL_VL_TYPES = ("sail_vl", "internvl_chat", "sailvl")

_CLASSES = {
    SAIL_VL: "sail_encoder.models.sail_vl.modeling_sail_vl:SailVLForConditionalGeneration",
    "sailvit": "sail_encoder.models.sail_vl.modeling_sailvit:SailViTModel",
    "internvit": "sail_encoder.models.sail_vl.modeling_sailvit:InternViTModel",
    PIXEL_SAIL: "sail_encoder.models.pixel_sail.modeling_pixel_sail:PixelSailForCausalLM",
}
_PROCESSORS = {
    SAIL_VL: "sail_encoder.models.sail_vl.processing_sail_vl:SailVLProcessor",
    PIXEL_SAIL: "sail_encoder.models.pixel_sail.processing_pixel_sail:PixelSailProcessor",
}


def kind_of_relative(model: str) -> str | None:
    """Kind of a relative, by its name or its small files; None for a SAIL, and for what is no checkpoint.

    Raises:
        CheckpointError: If there is no such checkpoint.
    """
    if model == TINY or model.startswith((TIMM, HF, RAW)):
        return None
    if known := published_name(model):
        if known in published.SAIL:
            return None
        return TOWER if published.SAIL_VL[known][1] is None else SAIL_VL
    folder = find_checkpoint(hub_name(model), weights=False)
    kind = read_json(folder / "config.json").get("model_type")
    if kind in _SAIL_VL_TYPES:
        return SAIL_VL
    if kind in TOWERS:
        return TOWER
    return PIXEL_SAIL if kind != "sail" and is_pixel_sail(folder) else None


def save_relative(kind: str, model: str, out: Path, precision: str, max_shard_size: str, **ids: int) -> CardKind:
    """Writes a relative in the format of transformers, with its processor where it has a tokenizer.

    Args:
        kind: See `kind_of_relative`.
        model: Its name or folder.
        out: Where to write.
        precision: Precision of the weights, `stored` for that of the files.
        max_shard_size: Size of a weight file at most.
        ids: Token ids in place of those of its tokenizer.

    Returns:
        What its card shows.

    Raises:
        CheckpointError: If its files are missing, damaged, or of something else.
    """
    from sail_encoder.models.reports import without_reports

    folder = find_checkpoint(hub_name(model))
    name = kind if kind != TOWER else _tower_of(folder)
    dtype = "auto" if precision == "stored" else precision
    with without_reports():
        loaded = _import(_CLASSES[name]).from_pretrained(folder, dtype=dtype, **ids)
    loaded.save_pretrained(out, max_shard_size=max_shard_size)
    if kind == TOWER:
        return cards.TOWER
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return cards.SAIL_VL_MODEL
    with explain_damage(f"cannot read the tokenizer in {folder}"):
        # Code that comes with a checkpoint is never run, and nobody is asked whether to run it.
        processor = _import(_PROCESSORS[kind]).from_pretrained(folder, trust_remote_code=False)
    processor.save_pretrained(out)
    return cards.SAIL_VL if kind == SAIL_VL else cards.PIXEL_SAIL


def _tower_of(folder: Path) -> str:
    """The tower's type in a configuration of its own."""
    from sail_encoder.models.sail_vl.checkpoint import read_config

    return str(read_config(folder).model_type)


def _import(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
