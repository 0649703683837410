"""`sail convert`: a published checkpoint in the native format, which transformers' Auto classes read."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_encoder.errors import UserError

if TYPE_CHECKING:
    import torch

    from sail_encoder.sail.checkpoint import SailCheckpoint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def convert(
    model: str,
    out: str,
    encoder_only: bool = False,
    layers: int | None = None,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    vision_start_token_id: int | None = None,
    image_token_id: int | None = None,
    vision_end_token_id: int | None = None,
    max_shard_size: str = "5GB",
) -> int:
    """Writes a SAIL checkpoint in the native format.

    AutoModel, AutoImageProcessor and the other Auto classes of transformers read it once sail_encoder is imported.
    Shards are written one at a time, so a model larger than memory can be converted.

    Args:
        model: A folder or a Hub name, in the published or the native format.
        out: Folder to write; must not exist, or be empty.
        encoder_only: Whether to leave out the language head and the text embeddings, for a smaller file that gives the
            same features.
        layers: With encoder_only, keep the first so many blocks alone.
        dtype: Precision of the weights.
        vision_start_token_id: Id of <vision>, where the checkpoint has no tokenizer.
        image_token_id: Id of <vpatch>, likewise.
        vision_end_token_id: Id of </vision>, likewise.
        max_shard_size: Size of a weight file at most.

    Returns:
        Exit status 0.
    """
    from sail_encoder.hub import find_checkpoint
    from sail_encoder.sail.checkpoint import open_sail

    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    if layers is not None and not encoder_only:
        raise UserError("--layers needs --encoder_only true: a shortened language model would only talk nonsense")
    given = {
        "vision_start_token_id": vision_start_token_id,
        "image_token_id": image_token_id,
        "vision_end_token_id": vision_end_token_id,
    }
    ids = {name: value for name, value in given.items() if value is not None}
    checkpoint = open_sail(find_checkpoint(model), **ids)
    checkpoint.config.vision_token_ids  # noqa: B018 - raises where they are unknown
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        _write(checkpoint, unfinished, encoder_only, layers, dtype, max_shard_size)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"wrote {folder}; sail info {folder} describes it")
    return 0


def _write(
    checkpoint: "SailCheckpoint", folder: Path, encoder_only: bool, layers: int | None, dtype: str, shard_size: str
) -> None:
    from sail_encoder.sail.checkpoint import expected_shapes, read_preprocessing
    from sail_encoder.sail.image_processing_sail import SailImageProcessor

    precision = _precision(checkpoint, dtype)
    if encoder_only or not checkpoint.has_language_head:
        config = checkpoint.encoder_config(layers)
        prefix, shapes = "", expected_shapes(config)
        rows = checkpoint.vision_rows
    else:
        config = checkpoint.config
        config.architectures = ["SailForCausalLM"]
        prefix, rows = "model.", {}
        shapes = {f"model.{name}": shape for name, shape in expected_shapes(config).items()}
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
        _copy_language_files(checkpoint.folder, folder)
    config.dtype = precision
    config.save_pretrained(folder)
    processor = {"patch_size": config.vision_patch_size, **read_preprocessing(checkpoint.folder)}
    SailImageProcessor(**processor).save_pretrained(folder)
    sources = {name: _source_key(name, prefix, checkpoint) for name in shapes}
    _write_shards(checkpoint, sources, shapes, rows, folder, precision, shard_size)


def _precision(checkpoint: "SailCheckpoint", dtype: str) -> "torch.dtype":
    import torch

    if dtype != "stored":
        return getattr(torch, dtype)
    return checkpoint.weights.tensors[checkpoint.prefix + "norm.weight"].dtype


def _source_key(name: str, prefix: str, checkpoint: "SailCheckpoint") -> str:
    return name if name == "lm_head.weight" else checkpoint.prefix + name.removeprefix(prefix)


def _write_shards(
    checkpoint: "SailCheckpoint",
    sources: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
    rows: dict[str, list[int]],
    folder: Path,
    precision: "torch.dtype",
    shard_size: str,
) -> None:
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    sizes = {name: torch.empty(shape, dtype=precision, device="meta") for name, shape in shapes.items()}
    plan = split_torch_state_dict_into_shards(sizes, max_shard_size=shard_size)
    for filename, names in plan.filename_to_tensors.items():
        targets = {sources[name]: name for name in names}
        read = checkpoint.weights.read(targets, rows)
        shard = {targets[key]: tensor.to(precision).contiguous() for key, tensor in read}
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _copy_language_files(source: Path, folder: Path) -> None:
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
