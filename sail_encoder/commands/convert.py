"""`sail convert`: a published checkpoint in the native format, which transformers' Auto classes read."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_encoder.backbones.descriptions import describe_sail
from sail_encoder.backbones.registry import announce
from sail_encoder.commands import cards
from sail_encoder.commands.relatives import SAIL_VL, kind_of_relative, save_relative
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.io.refusals import check_writable, explain_refusals
from sail_encoder.models.sail_vl.published import hub_name

if TYPE_CHECKING:
    import torch
    from huggingface_hub import StateDictSplit

    from sail_encoder.models.sail.checkpoint import SailCheckpoint
    from sail_encoder.models.sail.configuration_sail import SailConfig

LANGUAGE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
"""Bytes."""


def convert(
    model: str,
    out: str,
    encoder_only: bool = False,
    layers: int | None = None,
    precision: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    vision_start_token_id: int | None = None,
    image_token_id: int | None = None,
    vision_end_token_id: int | None = None,
    max_shard_size: str = "5GB",
) -> int:
    """Writes a published checkpoint in the format of transformers' Auto classes.

    SAIL, SAIL-VL, SAIL-VL2, SAILViT and Pixel-SAIL: AutoModel and the other Auto classes read the folder once
    sail_encoder is imported; its README.md shows how, and names source and licence. Of SAIL, shards are written one at
    a time, so that a model larger than memory can be converted; a relative is held in memory as a whole.

    Args:
        model: A folder or a Hub name, in the published or the native format.
        out: Folder to write; must not exist, or be empty.
        encoder_only: Of SAIL, whether to leave out the language head and the text embeddings, for a smaller file that
            gives the same features.
        layers: With encoder_only, keep the first so many blocks alone.
        precision: Precision of the weights.
        vision_start_token_id: Id of <vision>, where the checkpoint has no tokenizer.
        image_token_id: Id of <vpatch>, likewise.
        vision_end_token_id: Id of </vision>, likewise.
        max_shard_size: Size of a weight file at most.

    Returns:
        Exit status 0.
    """
    folder, shard_bytes = Path(out), _read_size(max_shard_size)
    _check_folder(folder)
    given = {
        "vision_start_token_id": vision_start_token_id,
        "image_token_id": image_token_id,
        "vision_end_token_id": vision_end_token_id,
    }
    ids = {name: value for name, value in given.items() if value is not None}
    if kind := kind_of_relative(model):
        return _convert_relative(
            kind, model, folder, precision, max_shard_size, ids, encoder_only=encoder_only, layers=layers
        )
    _check_layers(layers, encoder_only, describe_sail(model).num_layers)
    announce(model)
    from sail_encoder.models.sail.checkpoint import open_sail

    checkpoint = open_sail(find_checkpoint(model), **ids)
    checkpoint.require_vision_tokens()
    whole = checkpoint.has_language_head and not encoder_only
    config = checkpoint.language_config() if whole else checkpoint.encoder_config(layers)
    config.dtype = _precision(checkpoint, precision)
    keys = checkpoint.language_keys() | checkpoint.mask_keys() if whole else checkpoint.encoder_keys(config)
    rows = {} if whole else checkpoint.vision_rows
    shards = _split(checkpoint, keys, rows, config.dtype, shard_bytes)
    with _new_folder(folder) as unfinished:
        _write_settings(checkpoint.folder, config, LANGUAGE_FILES if whole else (), unfinished)
        for filename, names in shards.filename_to_tensors.items():
            tensors = checkpoint.read({name: keys[name] for name in names}, rows)
            _write_shard(tensors, config.dtype, unfinished / filename)
        _write_index(shards, unfinished)
        has_tokenizer = (unfinished / "tokenizer_config.json").is_file()
        card = cards.SAIL if whole and has_tokenizer else cards.ENCODER
        cards.write_card(card, model, checkpoint.folder, unfinished, folder.name)
    print(f"wrote {folder}; sail info {folder} describes it")
    return 0


def _convert_relative(
    kind: str, model: str, folder: Path, precision: str, max_shard_size: str, ids: dict[str, int], **of_sail: Any
) -> int:
    """Writes a relative of SAIL, which is held in memory as a whole."""
    foreign = [name for name, value in of_sail.items() if value]
    foreign += [name for name in ids if name != "image_token_id" or kind != SAIL_VL]
    if foreign:
        raise UserError(f"--{foreign[0]} has no effect on {model}, which is no SAIL; leave it out")
    announce(model)
    with _new_folder(folder) as unfinished:
        card = save_relative(kind, model, unfinished, precision, max_shard_size, **ids)
        cards.write_card(card, model, find_checkpoint(hub_name(model)), unfinished, folder.name)
    print(f"wrote {folder}; {folder / cards.CARD} shows how to use it")
    return 0


def _split(
    checkpoint: "SailCheckpoint",
    keys: dict[str, str],
    rows: dict[str, list[int]],
    dtype: "torch.dtype",
    shard_bytes: int,
) -> "StateDictSplit":
    """Split of tensors into files of so many bytes at most.

    Args:
        checkpoint: Where they come from.
        keys: For each tensor its name in the files of the checkpoint.
        rows: For some of these names, the rows to keep of the tensor.
        dtype: Type in which they are written.
        shard_bytes: Bytes of a file.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    stored = checkpoint.weights.tensors
    shapes = {name: list(stored[key].shape) for name, key in keys.items()}
    for name, key in keys.items():
        if key in rows:
            shapes[name][0] = len(rows[key])
    sizes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    return split_torch_state_dict_into_shards(sizes, max_shard_size=shard_bytes)


def _precision(checkpoint: "SailCheckpoint", precision: str) -> "torch.dtype":
    import torch

    if precision != "stored":
        return getattr(torch, precision)
    return checkpoint.weights.tensors[checkpoint.prefix + "norm.weight"].dtype


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    check_writable(folder)


def _check_layers(layers: int | None, encoder_only: bool, depth: int) -> None:
    if layers is not None and not encoder_only:
        raise UserError("--layers needs --encoder_only true: a shortened language model would only talk nonsense")
    if layers is not None and not 1 <= layers <= depth:
        raise UserError(f"layers={layers} cannot be loaded; this checkpoint has 1 to {depth}")


def _read_size(text: str) -> int:
    """Bytes from a number with its unit."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])B", text.strip().upper())
    count = int(float(size[1]) * _UNITS[size[2]]) if size else 0
    if count < 1:
        raise UserError(f"--max_shard_size '{text}' is not understood; use a size such as 500MB or 5GB")
    return count


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, and puts it in its place when it is complete."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    with explain_refusals(folder, "give the same command again"):
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            if folder.exists():
                folder.rmdir()
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _write_settings(source: Path, config: "SailConfig", files: Sequence[str], folder: Path) -> None:
    """Writes everything but the weights."""
    from sail_encoder.models.sail.config_file import read_preprocessing
    from sail_encoder.models.sail.image_processing_sail import SailImageProcessor

    config.save_pretrained(folder)
    processor = {"patch_size": config.vision_patch_size, **read_preprocessing(source)}
    SailImageProcessor(**processor).save_pretrained(folder)
    for name in files:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_shard(tensors: "Iterable[tuple[str, torch.Tensor]]", dtype: "torch.dtype", file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shard = {name: tensor.to(dtype).contiguous() for name, tensor in tensors}
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file.name}: {error}") from error


def _write_index(shards: "StateDictSplit", folder: Path) -> None:
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
