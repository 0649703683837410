"""`sail info`: what a checkpoint is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sail_encoder.backbones import published
from sail_encoder.backbones.published import published_name
from sail_encoder.backbones.registry import announce, describe
from sail_encoder.io.files import format_bytes
from sail_encoder.io.hub import TINY, TINY_FOLDER
from sail_encoder.models.sail_vl.published import hub_name

if TYPE_CHECKING:
    from sail_encoder.backbones.spec import BackboneSpec
    from sail_encoder.io.weights import WeightFiles
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
    if known := published_name(model):
        rows |= _published_rows(known, describe(model, project=True) if _has_language_model(known) else spec)
    elif spec.family in ("sail", "sail_vl"):
        rows |= _checkpoint_rows(model, spec.family)
    rows |= _backbone_rows(spec)
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
    return 0


def _has_language_model(known: str) -> bool:
    return published.SAIL_VL.get(known, (None, None))[1] is not None


def _published_rows(known: str, vision: "BackboneSpec") -> dict[str, str]:
    """Rows about a published model, known without its files."""
    rows = {
        "published as": f"https://huggingface.co/{known}",
        "licence": published.LICENCES.get(known, "see its card there"),
    }
    language_model = published.SAIL_VL.get(known, (None, None))[1]
    if language_model is None:
        return rows
    count = vision.parameters() + published.language_parameters(language_model)
    return {
        **rows,
        "language model": f"{language_model['model_type']}, {language_model['num_hidden_layers']} layers of "
        f"{language_model['hidden_size']:,} channels",
        "whole model": f"{count:,} parameters, {format_bytes(2 * count)} in bfloat16",
    }


def _checkpoint_rows(model: str, family: str) -> dict[str, str]:
    """Rows about the files of a checkpoint; weights that are not on this machine stay where they are."""
    from sail_encoder.io.hub import find_checkpoint, holds_weights

    folder = find_checkpoint(hub_name(model), weights=False)
    if not holds_weights(folder) and not Path(model).is_dir():
        return {
            "folder": str(folder),
            "contains": "settings alone; the first command that needs weights downloads them",
        }
    announce(model)
    if family == "sail_vl":
        from sail_encoder.models.sail_vl.checkpoint import open_sail_vl

        checkpoint = open_sail_vl(folder)
        contains = "tower, projector and language model" if checkpoint.has_language_model else "tower only"
        return {"contains": contains, **_file_rows(folder, checkpoint.weights)}
    from sail_encoder.models.sail.checkpoint import open_sail

    return _sail_rows(open_sail(folder))


def _sail_rows(checkpoint: "SailCheckpoint") -> dict[str, str]:
    config = checkpoint.config
    ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    window = "none" if config.sliding_window is None else f"{config.sliding_window} tokens (text only)"
    contains = "encoder and language head" if checkpoint.has_language_head else "encoder only"
    return {
        "contains": "encoder, language head and mask head" if checkpoint.has_mask_head else contains,
        **_file_rows(checkpoint.folder, checkpoint.weights),
        "heads": f"{config.num_attention_heads} of {config.head_dim}, {config.num_key_value_heads} for keys and values",
        "feed-forward": f"{config.intermediate_size:,}",
        "rope_theta": f"{config.rotary_base:g}",
        "rms_norm_eps": f"{config.rms_norm_eps:g}",
        "sliding_window": window,
        "vocabulary": f"{config.vocab_size:,}",
        "vision token ids": "unknown" if None in ids else f"<vision> {ids[0]}, <vpatch> {ids[1]}, </vision> {ids[2]}",
    }


def _file_rows(folder: Path, weights: "WeightFiles") -> dict[str, str]:
    tensors = weights.tensors.values()
    files = {tensor.file for tensor in tensors}
    return {
        "folder": str(folder),
        "files": f"{len(files)} {_formats(files)}, {format_bytes(sum(file.stat().st_size for file in files))}",
        "stored as": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        "parameters": f"{sum(tensor.numel for tensor in tensors):,}",
    }


def _formats(files: set[Path]) -> str:
    return " and ".join(sorted({file.suffix.removeprefix(".") for file in files}))


def _backbone_rows(spec: "BackboneSpec") -> dict[str, str]:
    stages = spec.stages or ((spec.patch_size, spec.embed_dim),)
    count, limit = spec.parameters(), f"{spec.resize.max_tokens:,} patches"
    memory = (f"{format_bytes(count * size)} in {name}" for name, size in PRECISIONS.items())
    return {
        "family": spec.family,
        "layers": f"{spec.num_layers} (0 to {spec.num_layers - 1})",
        "channels": ", ".join(f"{channels:,}" for _, channels in stages),
        "patch": ", ".join(f"{side}x{side}" for side, _ in stages) + " pixels" + " by layer" * (len(stages) > 1),
        "resize": str(spec.resize) if spec.resize.fixed or spec.resize.tile else f"{spec.resize}, at most {limit}",
        "encoder parameters": f"{count:,}",
        "encoder memory": ", ".join(memory),
    }
