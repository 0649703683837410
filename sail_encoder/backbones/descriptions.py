"""Sizes of backbones from their small files alone: no weights are read, and neither torch nor transformers imported."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sail_encoder.backbones import published as tables
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD
from sail_encoder.images.resizing import MAX_TOKENS, Resize
from sail_encoder.images.tiling import MAX_TILES
from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.hub import HF, RAW, TIMM, TINY, find_checkpoint
from sail_encoder.models.sail.config_file import find_described, read_preprocessing, read_sizes
from sail_encoder.models.sail_vl import published


def describe_sail(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads the sizes of a SAIL checkpoint; those of a published one are known without a download.

    Raises:
        CheckpointError: If there is no such checkpoint, or a file of it describes something else.
    """
    if name.startswith((TIMM, HF, RAW)):
        raise CheckpointError(f"{name} is no SAIL checkpoint; use {TINY}, a folder, or a Hub name")
    if known := tables.published_name(name, revision):
        return _sail_spec(name, tables.SAIL[known])
    return sail_spec_of(find_described(name, revision), name)


def sail_spec_of(folder: Path, name: str) -> BackboneSpec:
    """Reads the sizes of a SAIL checkpoint from its folder; see `describe_sail`."""
    return _sail_spec(name, read_sizes(folder), **_preprocessing(folder))


def _sail_spec(name: str, sizes: Mapping[str, Any], **preprocessing: Any) -> BackboneSpec:
    width, patch_size = sizes["hidden_size"], sizes["vision_patch_size"]
    attention_dim = sizes["num_attention_heads"] * sizes["head_dim"]
    key_value_dim = sizes["num_key_value_heads"] * sizes["head_dim"]
    return BackboneSpec(
        name=name,
        family="sail",
        patch_size=patch_size,
        embed_dim=width,
        num_layers=sizes["num_hidden_layers"],
        block_parameters=width * (2 * attention_dim + 2 * key_value_dim + 3 * sizes["intermediate_size"] + 2)
        + sizes.get("attention_bias", 0) * (attention_dim + 2 * key_value_dim),
        # The patch embedding, three vision tokens and the final norm.
        other_parameters=width * (3 * patch_size**2 + 3 + 1),
        attention_dim=attention_dim,
        extra_tokens=2,
        **preprocessing,
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


def describe_sail_vl(
    name: str, revision: str | None = None, max_tiles: int | None = None, msac: bool = False, project: bool = False
) -> BackboneSpec:
    """Reads the sizes of the tower of a SAIL-VL or SAIL-VL2, or of a SAILViT or InternViT alone.

    Those of a published one are known without a download.

    Args:
        name: As in `load_backbone`.
        revision: As in `load_backbone`.
        max_tiles: Tiles per image at most; by default what the checkpoint's image processor says, or 10.
        msac: Whether the tiles of a second grid are seen too.
        project: Whether features are those that the language model receives.

    Raises:
        CheckpointError: If there is no such checkpoint, a file of it describes something else, or it is a tower alone
            and `project` is asked for.
    """
    options: dict[str, Any] = {"max_tiles": max_tiles, "msac": msac, "project": project}
    if known := tables.published_name(name, revision):
        tower, language_model = tables.SAIL_VL[known]
        whole = None if language_model is None else tables.whole_settings(language_model)
        return _sail_vl_spec(name, tower, whole, {}, **options)
    return sail_vl_spec_of(find_checkpoint(published.hub_name(name), revision, weights=False), name, **options)


def sail_vl_spec_of(folder: Path, name: str, **options: Any) -> BackboneSpec:
    """Reads the sizes of a tower from the folder of its checkpoint; see `describe_sail_vl`."""
    tower, whole = published.read_tower(folder)
    tile = tower["image_size"] if whole is None else whole["tile_size"]
    return _sail_vl_spec(name, tower, whole, published.read_preprocessing(folder, tile), **options)


def _sail_vl_spec(
    name: str,
    tower: Mapping[str, Any],
    whole: Mapping[str, Any] | None,
    processor: Mapping[str, Any],
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
) -> BackboneSpec:
    if project and whole is None:
        raise CheckpointError(f"{name} is a vision tower alone and has no projector; leave out project")
    width, patch_size = tower["hidden_size"], tower["patch_size"]
    per_block, others = _tower_parameters(tower)
    tile = tower["image_size"] if whole is None else whole["tile_size"]
    limit = processor.get("max_tiles", MAX_TILES) if max_tiles is None else max_tiles
    spec = BackboneSpec(
        name=name,
        family="sail_vl",
        patch_size=patch_size,
        embed_dim=width,
        num_layers=tower["num_hidden_layers"],
        block_parameters=per_block,
        other_parameters=others,
        has_final_norm=tower["model_type"] == "sailvit",
        attention_dim=width,
        extra_tokens=int(tower["model_type"] == "internvit"),
        resize=Resize(tile=tile, max_tiles=limit),
        resample="BICUBIC",
        image_mean=tuple(processor.get("image_mean", IMAGENET_MEAN)),
        image_std=tuple(processor.get("image_std", IMAGENET_STD)),
        second_grid=msac or bool(processor.get("msac")),
    )
    return spec if whole is None or not project else _projected(spec, whole)


def _projected(spec: BackboneSpec, whole: Mapping[str, Any]) -> BackboneSpec:
    """A tower with the projector on its selected block; squares of patches become one."""
    factor, width = round(1 / whole["downsample_ratio"]), whole["text_config"]["hidden_size"]
    gathered = spec.embed_dim * factor**2
    return replace(
        spec,
        patch_size=spec.patch_size * factor,
        embed_dim=width,
        num_layers=spec.num_layers + 1 + whole["select_layer"],
        other_parameters=spec.other_parameters + 2 * gathered + (gathered + 1) * width + (width + 1) * width,
    )


def _tower_parameters(tower: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters per block of a tower, and outside its blocks."""
    width, hidden, patches = tower["hidden_size"], tower["intermediate_size"], 3 * tower["patch_size"] ** 2
    positions = (tower["image_size"] // tower["patch_size"]) ** 2
    qkv = 3 * width * (width + bool(tower["qkv_bias"]))
    if tower["model_type"] == "internvit":
        block = qkv + width * (width + 1) + 2 * width * hidden + hidden + width + 6 * width
        return block, width * (patches + 1) + (positions + 2) * width
    biased = bool(tower["use_bias"])
    block = qkv + width * (width + biased) + 3 * width * hidden + biased * (2 * hidden + width) + 2 * width
    # The patch embedding and its norm, positions, and the final norm.
    return block, width * (patches + 1) + width + positions * width + width


def describe_raw(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads the size of raw patches from `raw/` and their side in pixels.

    Raises:
        CheckpointError: If that is no number from 1.
    """
    text = name.removeprefix(RAW)
    if not text.isdecimal() or int(text) < 1:
        raise CheckpointError(f"no raw patches '{name}'; give their side in pixels, such as raw/14")
    side = int(text)
    return BackboneSpec(
        name=name, family="raw", patch_size=side, embed_dim=3 * side**2, num_layers=1, has_final_norm=False
    )
