"""`sail info`: what a checkpoint is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sail_encoder.backbones.registry import announce, describe
from sail_encoder.io.files import format_bytes
from sail_encoder.io.hub import HF, RAW, TIMM, TINY, TINY_FOLDER

if TYPE_CHECKING:
    from sail_encoder.backbones.spec import BackboneSpec
    from sail_encoder.models.sail.checkpoint import SailCheckpoint

PRECISIONS = {"float32": 4, "bfloat16": 2, "float16": 2}


def info(model: str = TINY) -> int:
    """Describes a checkpoint.

    Tells sizes, tokens, files, and the memory that features need. Downloads no weights.

    Args:
        model: sail-tiny, a folder, a Hub name, timm/NAME, or hf/NAME.

    Returns:
        Exit status 0.
    """
    spec = describe(model)
    rows = {"model": model}
    if model == TINY:
        rows["about"] = json.loads((TINY_FOLDER / "training.json").read_text(encoding="utf-8"))["about"]
    if not model.startswith((TIMM, HF, RAW)):
        rows |= _checkpoint_rows(model)
    rows |= _backbone_rows(spec)
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    return 0


def _checkpoint_rows(model: str) -> dict[str, str]:
    """What the files of a checkpoint tell; weights that are not on this machine stay where they are."""
    from sail_encoder.io.hub import find_checkpoint, holds_weights

    folder = find_checkpoint(model, weights=False)
    if not holds_weights(folder) and not Path(model).is_dir():
        return {
            "folder": str(folder),
            "contains": "settings alone; the first command that needs weights downloads them",
        }
    announce(model)
    from sail_encoder.models.sail.checkpoint import open_sail

    return _sail_rows(open_sail(folder))


def _sail_rows(checkpoint: "SailCheckpoint") -> dict[str, str]:
    config, tensors = checkpoint.config, checkpoint.weights.tensors
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    files = {tensor.file for tensor in tensors.values()}
    ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    window = "none" if config.sliding_window is None else f"{config.sliding_window} tokens (text only)"
    return {
        "folder": str(checkpoint.folder),
        "contains": "encoder and language head" if checkpoint.has_language_head else "encoder only",
        "files": f"{len(files)} {_formats(files)}, {format_bytes(sum(file.stat().st_size for file in files))}",
        "stored as": ", ".join(dtypes),
        "parameters": f"{sum(tensor.numel for tensor in tensors.values()):,}",
        "heads": f"{config.num_attention_heads} of {config.head_dim}, {config.num_key_value_heads} for keys and values",
        "feed-forward": f"{config.intermediate_size:,}",
        "rope_theta": f"{config.rotary_base:g}",
        "rms_norm_eps": f"{config.rms_norm_eps:g}",
        "sliding_window": window,
        "vocabulary": f"{config.vocab_size:,}",
        "vision token ids": "unknown" if None in ids else f"<vision> {ids[0]}, <vpatch> {ids[1]}, </vision> {ids[2]}",
    }


def _formats(files: set[Path]) -> str:
    return " and ".join(sorted({file.suffix.removeprefix(".") for file in files}))


def _backbone_rows(spec: "BackboneSpec") -> dict[str, str]:
    count = spec.parameters()
    memory = (f"{format_bytes(count * size)} in {name}" for name, size in PRECISIONS.items())
    return {
        "family": spec.family,
        "layers": f"{spec.num_layers} (0 to {spec.num_layers - 1})",
        "channels": f"{spec.embed_dim:,}",
        "patch": f"{spec.patch_size}x{spec.patch_size} pixels",
        "resize": f"{spec.resize}, at most {spec.resize.max_tokens:,} patches"
        if not spec.resize.fixed
        else f"{spec.resize}",
        "encoder parameters": f"{count:,}",
        "encoder memory": ", ".join(memory),
    }
