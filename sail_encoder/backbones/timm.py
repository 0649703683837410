"""Any timm model as a vision backbone, for comparison with SAIL."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from math import floor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from einops import rearrange
from timm.data import resolve_model_data_config
from timm.layers import (
    EvoNorm2dS0,
    FilterResponseNormTlu2d,
    LayerNorm2d,
    LayerNorm2dFp32,
    PatchEmbed,
    RmsNorm2d,
    RmsNorm2dFp32,
    SimpleNorm2d,
    SimpleNorm2dFp32,
)
from torch import Tensor, nn

from sail_encoder.backbones.batch import Encoded
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.backbones.stacked import StackedBackbone
from sail_encoder.backbones.timm_weights import load_weights
from sail_encoder.images.resizing import MAX_TOKENS, Resize, Size
from sail_encoder.io.devices import is_out_of_memory
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import TIMM, find_checkpoint
from sail_encoder.io.weights import require_finite

HUB, FOLDER = "hf-hub:", "local-dir:"
"""What timm lets names begin with that are a repository on the Hub, or a folder of the same form."""

_NORMS_OF_MAPS = (
    *(LayerNorm2d, LayerNorm2dFp32, RmsNorm2d, RmsNorm2dFp32, SimpleNorm2d, SimpleNorm2dFp32),
    nn.BatchNorm2d,
)
"""Norms that take [n, C, height, width], not [n, C]."""

_NORMS_OF_WHOLE_MAPS = (nn.GroupNorm, EvoNorm2dS0, FilterResponseNormTlu2d)
"""Norms whose statistics go over places, so that a patch alone cannot go through them."""

_FINAL_NORMS = ("norm", "fc_norm", "head.norm", "norm_head")
"""Where timm's models keep their final norm; those that pool first, `fc_norm` and `head.norm`."""


class TimmBackbone(StackedBackbone):
    """A timm model, through its `forward_intermediates`.

    Images are squashed to the size that the model was trained at, unless another rule is asked for. A layer is a block
    of a plain transformer, or a stage of a hierarchical model. Stages have patches and channels of their own, so that
    layers of different stages cannot be had in one call; and as in timm, the final norm is that of the last one alone.

    Args:
        spec: What it is.
        model: The model, in evaluation mode.
        any_size: Whether it takes images of any size.
    """

    def __init__(self, spec: BackboneSpec, model: Any, any_size: bool) -> None:
        super().__init__(spec, model, any_size)
        self.norm_name = find_final_norm(model)

    def forward_stack(self, pixel_values: Tensor, layers: Sequence[int]) -> Encoded:
        grid = (pixel_values.shape[2] // self.patch_size, pixel_values.shape[3] // self.patch_size)
        patches, class_tokens = {}, {}
        for layer, (spatial, prefix) in zip(layers, self._intermediates(pixel_values, list(layers)), strict=True):
            if spatial.shape[2:] != grid:
                raise UserError(
                    f"{self.name} does not give {grid[0]}x{grid[1]} features, but {tuple(spatial.shape[2:])}"
                )
            patches[layer] = rearrange(spatial, "n c r k -> (n r k) c")
            if prefix is not None:
                # Registers, where there are any, stand after the class token.
                class_tokens[layer] = prefix[:, 0]
        return Encoded(patches, class_tokens)

    def _intermediates(self, batch: Tensor, layers: list[int]) -> list[tuple[Tensor, Tensor | None]]:
        options = {"indices": layers, "intermediates_only": True, "stop_early": True, "output_fmt": "NCHW"}
        try:
            if self.spec.has_class_token:
                return list(self.model.forward_intermediates(batch, return_prefix_tokens=True, **options))
            return [(spatial, None) for spatial in self.model.forward_intermediates(batch, **options)]
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            size = tuple(batch.shape[2:])
            advice = "take another model" if size == self.spec.resize.fixed else "leave --resize at auto"
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.name} cannot take images of {size[0]}x{size[1]} ({reason}); {advice}") from error

    def final_norm(self, states: Tensor) -> Tensor:
        if self.norm_name is None or not self.spec.has_final_norm:
            return states
        norm = self.model.get_submodule(self.norm_name)
        if isinstance(norm, _NORMS_OF_MAPS):
            return norm(states.reshape(-1, self.embed_dim, 1, 1)).view_as(states)
        return norm(states)

    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        for name, weight in self.model.state_dict().items():
            if not (name.startswith("blocks.") and int(name.split(".")[1]) > last_layer):
                yield name, weight

    def constants(self) -> dict[str, Any]:
        return {"model": self.model.pretrained_cfg["architecture"]}


def load_timm(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    weights: str | None = None,
) -> TimmBackbone:
    """Loads a timm model; see `load_backbone`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = _find_weights(name.removeprefix(TIMM), weights) if pretrained else None
        model, any_size = _create(name, pretrained and own is None)
    if own is not None:
        load_weights(model, own)
    elif pretrained:
        require_finite(model.state_dict(), name)
    spec, depth = _describe_model(name, model), len(model.feature_info)
    if layers is not None:
        if not 1 <= layers <= depth:
            raise UserError(f"layers={layers} cannot be loaded; {name} has 1 to {depth}")
        _prune(model, layers)
        model.feature_info = model.feature_info[:layers]
        spec = replace(spec.at([layers - 1]), num_layers=layers, stages=spec.stages[:layers])
    model = model.to(device, dtype).eval().requires_grad_(False)
    return TimmBackbone(spec, model, any_size)


def find_final_norm(model: Any) -> str | None:
    """Name of the norm that a timm model has after its last block, wherever it keeps it; None where it has none.

    Models that pool before the norm keep it in their head; features go through it patch by patch. A neck of
    convolutions, as in SAM, is no norm; one that has the statistics of a whole map is left out.
    """
    width = model.feature_info[-1]["num_chs"]
    for name in _FINAL_NORMS:
        module = model
        for part in name.split("."):
            module = getattr(module, part, None)
        weight = getattr(module, "weight", None)
        is_norm = isinstance(weight, Tensor) and weight.shape == (width,)
        if is_norm and not isinstance(module, _NORMS_OF_WHOLE_MAPS):
            return name
    return None


def _prune(model: Any, layers: int) -> None:
    """Drops the blocks after the first so many, and the head, but not a norm that is kept there."""
    name = find_final_norm(model)
    norm = None if name is None else model.get_submodule(name)
    model.prune_intermediate_layers([layers - 1], prune_norm=False, prune_head=True)
    if name is not None:
        place, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(place), attribute, norm)


def _find_weights(bare: str, weights: str | None) -> Path | None:
    """Weights that are not those that timm publishes for an architecture; timm reads only the latter.

    Where a repository names its own files, earlier versions of timm would run code that is in them.
    """
    if weights is not None:
        return Path(weights)
    if bare.startswith(FOLDER):
        return Path(bare.removeprefix(FOLDER))
    if bare.startswith(HUB):
        repository, _, revision = bare.removeprefix(HUB).partition("@")
        return find_checkpoint(repository, revision or None)
    return None


def _create(name: str, pretrained: bool) -> tuple[Any, bool]:
    """The model, and whether it takes images of any size."""
    bare = name.removeprefix(TIMM)
    if not bare.startswith((HUB, FOLDER)) and not timm.is_model(bare):
        nearest = timm.list_models(f"*{bare.split('.')[0]}*")[:3]
        hint = f"; there is {', '.join(nearest)}" if nearest else "; timm.list_models() lists all"
        raise CheckpointError(f"timm has no model '{bare}'{hint}")
    try:
        try:
            model, any_size = timm.create_model(bare, pretrained, num_classes=0, dynamic_img_size=True), True
        except TypeError:
            model = timm.create_model(bare, pretrained, num_classes=0)
            any_size = not hasattr(model, "pos_embed") and not any(isinstance(m, PatchEmbed) for m in model.modules())
    except (OSError, RuntimeError, UnpicklingError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot load '{bare}' ({reason})") from None
    if not hasattr(model, "forward_intermediates"):
        raise CheckpointError(f"timm's '{bare}' does not give its layers (forward_intermediates); take another model")
    return model, any_size


def describe_timm(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads the sizes of a timm model from the model itself, built without weights.

    Raises:
        CheckpointError: If there is no such model, it does not give its layers, or no size near the one that it was
            trained at has a grid of its patches.
    """
    with torch.device("meta"):
        model, _any_size = _create(name, pretrained=False)
    return _describe_model(name, model)


def _describe_model(name: str, model: Any) -> BackboneSpec:
    data = resolve_model_data_config(model)
    stages = tuple((int(stage["reduction"]), int(stage["num_chs"])) for stage in model.feature_info)
    patch_size, width = stages[-1]
    total = sum(weight.numel() for weight in model.parameters())
    blocks = sum(weight.numel() for key, weight in model.named_parameters() if key.startswith("blocks.")) or total
    return BackboneSpec(
        name=name,
        family="timm",
        patch_size=patch_size,
        embed_dim=width,
        num_layers=len(stages),
        stages=stages if len(set(stages)) > 1 else (),
        block_parameters=blocks // len(stages),
        other_parameters=total - blocks,
        attention_dim=width,
        extra_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        has_class_token=getattr(model, "cls_token", None) is not None and _gives_prefix_tokens(model),
        resize=Resize(_own_size(name, data["input_size"][1:], patch_size), MAX_TOKENS),
        resample=data["interpolation"].upper(),
        image_mean=tuple(data["mean"]),
        image_std=tuple(data["std"]),
        has_final_norm=find_final_norm(model) is not None,
    )


@cache
def _own_size(name: str, trained: Size, patch_size: int) -> Size:
    """Size of images that a model takes by default: what it was trained at, where its patches tile that.

    Where they do not, the sizes next to it are tried on a model without weights or values, the smaller first: most
    models leave out what is beyond the last patch.

    Raises:
        CheckpointError: If none gives a grid of features that tiles the image.
    """
    if all(side % patch_size == 0 for side in trained):
        return trained
    smaller, nearest = (
        tuple(max(1, whole(side / patch_size)) * patch_size for side in trained) for whole in (floor, round)
    )
    with torch.device("meta"):
        model, _ = _create(name, pretrained=False)
    problems = []
    for height, width in dict.fromkeys((smaller, nearest)):
        problem = _problem_at(model.eval(), (height, width), patch_size)
        if problem is None:
            return height, width
        problems.append(f"at {height}x{width} {problem}")
    raise CheckpointError(
        f"{name} was trained at {trained[0]}x{trained[1]}, which patches of {patch_size} pixels do not tile, and "
        f"{', '.join(problems)}; take another model"
    )


@torch.no_grad()
def _problem_at(model: Any, size: Size, patch_size: int) -> str | None:
    """What keeps a model on the meta device from giving a grid of features for images of a size; None if nothing."""
    images = torch.empty(1, 3, *size, device="meta")
    try:
        last = model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NCHW")[-1]
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        return f"it fails ({(str(error) or type(error).__name__).splitlines()[0][:100]})"
    found, expected = tuple(last.shape[2:]), (size[0] // patch_size, size[1] // patch_size)
    return None if found == expected else "its grid is {}x{}, not {}x{}".format(*found, *expected)


def _gives_prefix_tokens(model: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
