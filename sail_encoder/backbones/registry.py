"""Families of backbones: from a name to what is known of the backbone without its weights, and to the backbone."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_encoder.backbones import published
from sail_encoder.backbones.layers import LayerSpec, check_layers, resolve_layers
from sail_encoder.backbones.published import published_name
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.images.resizing import MAX_TOKENS, Resize
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import HF, RAW, TIMM, TINY, find_checkpoint
from sail_encoder.models.sail.config_file import MODEL_TYPES
from sail_encoder.models.sail_vl.published import TOWERS, hub_name, read_json

if TYPE_CHECKING:
    import torch

    from sail_encoder.backbones.base import VisionBackbone

GROUP = "sail_encoder.backbones"
"""Entry points under which installed packages add families."""


@dataclass(frozen=True)
class Family:
    """A kind of backbones.

    Attributes:
        name: Name in messages and in `BackboneSpec.family`.
        describe: `module:function` that takes (name, revision, **options) and returns a `BackboneSpec`.
        load: `module:function` that takes (name, device, dtype, layers, revision, pretrained, **options) and returns a
            `VisionBackbone`.
        prefix: What names of this family begin with; empty for checkpoints, which are recognised by their config.json.
        model_types: Of checkpoints, what config.json gives as `model_type`, or else as its architecture.
        options: Names of its own options.
        is_light: Whether `describe` needs neither torch nor timm.
    """

    name: str
    describe: str
    load: str
    prefix: str = ""
    model_types: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_light: bool = True


SAIL = Family(
    "sail",
    "sail_encoder.backbones.descriptions:describe_sail",
    "sail_encoder.backbones.sail:load_sail",
    model_types=MODEL_TYPES,
    options=("vision_start_token_id", "image_token_id", "vision_end_token_id"),
)
SAIL_VL = Family(
    "sail_vl",
    "sail_encoder.backbones.descriptions:describe_sail_vl",
    "sail_encoder.backbones.sail_vl:load_sail_vl",
    model_types=("sail_vl", "internvl_chat", "sailvl", *TOWERS),
    options=("max_tiles", "msac", "project"),
)
BUILT_IN = (
    Family(
        "timm",
        "sail_encoder.backbones.timm:describe_timm",
        "sail_encoder.backbones.timm:load_timm",
        TIMM,
        options=("weights",),
        is_light=False,
    ),
    Family(
        "hf",
        "sail_encoder.backbones.hf_config:describe_hf",
        "sail_encoder.backbones.hf:load_hf",
        HF,
    ),
    Family("raw", "sail_encoder.backbones.descriptions:describe_raw", "sail_encoder.backbones.raw:load_raw", RAW),
    SAIL_VL,
    SAIL,
)


@cache
def families() -> tuple[Family, ...]:
    """All families, those of installed packages first."""
    return (*(entry.load() for entry in entry_points(group=GROUP)), *BUILT_IN)


def family_of(name: str, revision: str | None = None) -> Family:
    """The family of a backbone, by the prefix of its name or by the config.json of the checkpoint.

    Raises:
        CheckpointError: If there is no such checkpoint, or no family reads it.
    """
    for family in families():
        if family.prefix and name.startswith(family.prefix):
            return family
    if known := published_name(name, revision):
        return SAIL if known in published.SAIL else SAIL_VL
    folder = find_checkpoint(hub_name(name), revision, weights=False)
    config = read_json(folder / "config.json")
    kind = config.get("model_type") or next(iter(config.get("architectures") or ()), None)
    for family in families():
        if kind in family.model_types:
            return family
    raise CheckpointError(
        f"{name} is a '{kind}' checkpoint, not SAIL or a relative of it; vision models of transformers are named "
        f"hf/{name}, those of timm timm/NAME"
    )


def load_backbone(
    name: str = TINY,
    device: "str | torch.device" = "auto",
    dtype: "str | torch.dtype" = "auto",
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    **options: Any,
) -> "VisionBackbone":
    """Loads a vision backbone, and of its weights only what features need.

    Args:
        name: `sail-tiny`, a folder with a checkpoint of SAIL, SAIL-VL, SAIL-VL2, SAILViT (published or native format)
            or Pixel-SAIL, of which the transformer is meant, its name on the Hugging Face Hub, `timm/` and the name of
            a timm model, `hf/` and the name on the Hub or the folder of a vision model of transformers (DINOv2, DINOv3,
            SigLIP, CLIP, ViT, AIMv2, InternVL), or `raw/14` for raw patches of 14 pixels, as a baseline.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU where there is one.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is bfloat16 on a GPU and float32 on a CPU.
        layers: Load only the first so many blocks; layers then count within these.
        revision: Branch, tag or commit of a checkpoint on the Hub.
        pretrained: Whether to read the weights; without them the model is random, always with the same seed.
        options: Options of the family. SAIL: `vision_start_token_id`, `image_token_id` and `vision_end_token_id`, the
            ids of `<vision>`, `<vpatch>` and `</vision>`, for a checkpoint that has neither a tokenizer nor the ids in
            its configuration. SAIL-VL: `max_tiles` per image, `msac` for a second grid of tiles, `project` for the
            features that its language model receives. timm: `weights`, a file or folder in place of the
            published ones.

    Returns:
        The backbone, in evaluation mode.

    Raises:
        CheckpointError: If the checkpoint cannot be found or used.
        UserError: If device, dtype or layers are not possible, or an option is not for this family.
    """
    from sail_encoder.io.devices import choose_device, choose_dtype

    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    family = family_of(name, revision)
    given = _check_options(name, family, revision, options)
    backbone: VisionBackbone = _import(family.load)(name, where, precision, layers, revision, pretrained, **given)
    return backbone


def describe(name: str, revision: str | None = None, **options: Any) -> BackboneSpec:
    """Reads what a backbone is from its configuration; only for a timm model this imports torch, and timm.

    Raises:
        CheckpointError: If there is no such backbone.
        UserError: If an option is not for this family.
    """
    family = family_of(name, revision)
    if not family.is_light and "torch" not in sys.modules:
        announce(family.name)
    spec: BackboneSpec = _import(family.describe)(name, revision, **_check_options(name, family, revision, options))
    return spec


def resolve_features(
    model: str, layers: LayerSpec, size: str, max_tokens: int | None, **asked: Any
) -> tuple[BackboneSpec, FeatureSpec]:
    """Reads what a command was asked for as it is meant for a model, before that is loaded.

    Args:
        model: As in `load_backbone`.
        layers: Which blocks.
        size: Rule of resizing, in text form; `auto` is the model's own.
        max_tokens: Patches per image at most; None for the model's own limit.
        asked: Further fields of the `FeatureSpec`.

    Returns:
        What the model is, and what its features are to be: without a norm where the model has none for these layers.

    Raises:
        UserError: If there is no such model, it has no such layers or no class token that was asked for, or its patches
            do not tile the size.
    """
    check_features(layers, size, max_tokens)
    if model.startswith(RAW) and not asked.get("pretrained", True):
        raise UserError(f"--random-weights has no effect on {model}, which has no weights; leave it out")
    spec = describe(model, **asked.get("options", {}))
    indices = tuple(resolve_layers(layers, spec.num_layers))
    spec = spec.at(indices)
    rule = spec.resize.override(size, max_tokens)
    spec.channels(asked.get("pool", "none"), asked.get("class_token", False))
    if rule.fixed is not None:
        spec.grid(rule.fixed, rule)
    if asked.get("norm", True) and not spec.has_final_norm:
        asked["norm"] = False
        if not model.startswith(RAW):
            print(f"{model} has no final norm for these layers; they stay as they are (norm false)", file=sys.stderr)
    return spec, FeatureSpec(model, indices, size=rule, **asked)


def choose_backbone(
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
) -> dict[str, Any]:
    """Fields of a `FeatureSpec` for the options of commands that say how a backbone is loaded.

    Args:
        weights: `--weights`, a file or folder in place of a model's own weights.
        random_weights: `--random-weights`.
        max_tiles: `--max-tiles`, of SAIL-VL.
        msac: `--msac`, of SAIL-VL.
        project: `--project`, of SAIL-VL.

    Raises:
        UserError: If weights are to be read and random, or there is no such file or folder.
    """
    tiling = {"max_tiles": max_tiles, "msac": msac or None, "project": project or None}
    options: dict[str, Any] = {name: value for name, value in tiling.items() if value is not None}
    if weights is not None:
        if random_weights:
            raise UserError("--weights and --random-weights exclude each other; leave one of them out")
        if not Path(weights).exists():
            raise UserError(f"no weights {weights}; name a safetensors file, a checkpoint, or their folder")
        options["weights"] = str(Path(weights).absolute())
    return {"pretrained": not random_weights, "options": options}


def load_for(features: FeatureSpec, device: "str | torch.device" = "auto", name: str | None = None) -> "VisionBackbone":
    """Loads the backbone of features, and no more of its blocks than they need.

    Args:
        features: What the features are.
        device: As in `load_backbone`.
        name: Where the backbone is, if it has moved.
    """
    chosen = {"pretrained": features.pretrained, **features.options}
    return load_backbone(name or features.model, device, features.precision, features.depth, **chosen)


def check_features(layers: LayerSpec, size: str, max_tokens: int | None) -> None:
    """Finds what is misspelled in them; a timm model cannot be described before timm is imported.

    Raises:
        UserError: If one is not understood.
    """
    check_layers(layers)
    if size != "auto":
        Resize.parse(size)
    Resize(max_tokens=MAX_TOKENS if max_tokens is None else max_tokens)


def announce(what: str) -> None:
    """Says on stderr what is being loaded; called before the imports for it, which take seconds."""
    print(f"loading {what} ...", file=sys.stderr)


def _check_options(name: str, family: Family, revision: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, if they are the family's."""
    given = {option: value for option, value in options.items() if value is not None}
    foreign = [option for option in given if option not in family.options]
    if revision is not None and family.prefix not in ("", HF):
        foreign.append("revision")
    if foreign:
        takers = ", ".join(_takers(foreign[0])) or "no family"
        raise UserError(f"{', '.join(foreign)} has no effect on {name}; it is for {takers}")
    return given


def _takers(option: str) -> Iterator[str]:
    """Families that take an option."""
    if option == "revision":
        yield "checkpoints on the Hub"
    for family in families():
        if option in family.options:
            yield f"{family.name} checkpoints"


def _import(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)
