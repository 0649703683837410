"""From the name of a backbone to the backbone, or to what is known of it without its weights."""

import sys
from typing import TYPE_CHECKING

from sail_encoder.backbones.layers import LayerSpec, check_layers, resolve_layers
from sail_encoder.backbones.spec import BackboneSpec, describe_raw
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import RAW, TIMM, TINY
from sail_encoder.models.sail.config_file import describe_sail

if TYPE_CHECKING:
    import torch

    from sail_encoder.backbones.base import VisionBackbone


def load_backbone(
    name: str = TINY,
    device: "str | torch.device" = "auto",
    dtype: "str | torch.dtype" = "auto",
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    vision_start_token_id: int | None = None,
    image_token_id: int | None = None,
    vision_end_token_id: int | None = None,
) -> "VisionBackbone":
    """Loads a vision backbone, and of its weights only what features need.

    Args:
        name: `sail-tiny`, a folder with a SAIL checkpoint (published or native format), its name on the Hugging Face
            Hub, `timm/` and the name of a timm model, or `raw/14` for raw patches of 14 pixels, as a baseline.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU where there is one.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is bfloat16 on a GPU and float32 on a CPU.
        layers: Load only the first so many blocks; layers then count within these.
        revision: Branch, tag or commit of a SAIL checkpoint on the Hub.
        pretrained: Whether to read the weights; without them the model is random, always with the same seed.
        vision_start_token_id: Id of `<vision>`, for a SAIL checkpoint that has neither a tokenizer nor the ids in its
            configuration.
        image_token_id: Id of `<vpatch>`, likewise.
        vision_end_token_id: Id of `</vision>`, likewise.

    Returns:
        The backbone, in evaluation mode.

    Raises:
        CheckpointError: If the checkpoint cannot be found or used.
        UserError: If device, dtype or layers are not possible, or an option is not for this backbone.
    """
    from sail_encoder.io.devices import choose_device, choose_dtype

    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    token_ids = {
        "vision_start_token_id": vision_start_token_id,
        "image_token_id": image_token_id,
        "vision_end_token_id": vision_end_token_id,
    }
    given = {name_of_id: token_id for name_of_id, token_id in token_ids.items() if token_id is not None}
    if name.startswith((TIMM, RAW)):
        _refuse(name, [*given, *(["revision"] if revision else [])])
    if name.startswith(TIMM):
        from sail_encoder.backbones.timm import load_timm

        return load_timm(name, where, precision, layers, pretrained)
    if name.startswith(RAW):
        from sail_encoder.backbones.raw import load_raw

        return load_raw(name, where, precision, layers)
    from sail_encoder.backbones.sail import load_sail

    return load_sail(name, where, precision, layers, revision, pretrained, **given)


def _refuse(name: str, options: list[str]) -> None:
    if options:
        raise UserError(f"{', '.join(options)} has no effect on {name}; it is for SAIL checkpoints")


def describe(name: str, revision: str | None = None) -> BackboneSpec:
    """Reads what a backbone is from its configuration; only for a timm model this imports torch, and timm.

    Raises:
        CheckpointError: If there is no such backbone.
    """
    if name.startswith(TIMM):
        from sail_encoder.backbones.timm import describe_timm

        return describe_timm(name)
    if name.startswith(RAW):
        return describe_raw(name)
    return describe_sail(name, revision)


def resolve_options(
    model: str, layers: LayerSpec, resize: str, max_tokens: int | None
) -> tuple[BackboneSpec, list[int], Resize]:
    """Reads what a command was asked for as it is meant for a model, before that is loaded.

    Args:
        model: As in `load_backbone`.
        layers: Which blocks.
        resize: The rule of resizing, in text form; `auto` is the model's own.
        max_tokens: Patches of an image at most; None for the model's own limit.

    Returns:
        What the model is, the indices of the blocks, and the rule.

    Raises:
        UserError: If there is no such model, it has no such layers, or its patches do not tile the size.
    """
    check_options(layers, resize, max_tokens)
    if model.startswith(TIMM) and "timm" not in sys.modules:
        announce("timm")
    spec = describe(model)
    rule = spec.resize.override(resize, max_tokens)
    if rule.fixed is not None:
        rule.grid(rule.fixed, spec.patch_size)
    return spec, resolve_layers(layers, spec.num_layers), rule


def check_options(layers: LayerSpec, resize: str, max_tokens: int | None) -> None:
    """Finds what is misspelled in them; a timm model cannot be described before timm is imported.

    Raises:
        UserError: If one is not understood.
    """
    check_layers(layers)
    Resize().override(resize, max_tokens)


def announce(what: str) -> None:
    """Says on stderr what is being loaded; called before the imports for it, which take seconds."""
    print(f"loading {what} ...", file=sys.stderr)
