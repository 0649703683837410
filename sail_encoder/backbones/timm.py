"""Any timm model as a vision backbone, for comparison with SAIL."""

import inspect
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Any

import timm
import torch
from einops import rearrange
from PIL import Image
from timm.data import resolve_model_data_config
from timm.layers import LayerNorm2d, PatchEmbed, RmsNorm2d
from torch import Tensor, nn

from sail_encoder.backbones.base import Encoded, VisionBackbone
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.resizing import MAX_TOKENS, Resize, Size
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import TIMM

_NORMS_OF_MAPS = (LayerNorm2d, RmsNorm2d, nn.BatchNorm2d, nn.GroupNorm)
"""Norms that take [n, C, height, width], not [n, C]."""


class TimmBackbone(VisionBackbone):
    """A timm model behind its `forward_intermediates`.

    Images are squashed to the size that the model was trained at, unless another rule is asked for. A layer is a block
    of a plain transformer, or a stage of a hierarchical model; stages other than the last have another patch size and
    are refused.

    Args:
        name: What it was loaded as.
        model: The model, in evaluation mode.
        any_size: Whether it takes images of any size.
    """

    def __init__(self, name: str, model: Any, any_size: bool) -> None:
        self.name = name
        self.model = model
        self.any_size = any_size
        data = resolve_model_data_config(model)
        last = model.feature_info[-1]
        self.patch_size = int(last["reduction"])
        self.embed_dim = int(last["num_chs"])
        self.num_layers = len(model.feature_info)
        self.has_class_token = getattr(model, "cls_token", None) is not None and _gives_prefix_tokens(model)
        self.resize = Resize(tuple(data["input_size"][1:]), MAX_TOKENS)
        self.resample = Image.Resampling[data["interpolation"].upper()]
        self.image_mean, self.image_std = tuple(data["mean"]), tuple(data["std"])

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def forward_patches(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int]) -> Encoded:
        self._check(grids, layers)
        wanted = sorted(layers)
        patches: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
        class_tokens: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
        start = 0
        for (rows, columns), group in groupby(grids):
            images = len(list(group))
            stop = start + images * rows * columns
            pattern = "(n r k) (c y x) -> n c (r y) (k x)"
            size = {"n": images, "r": rows, "y": self.patch_size, "x": self.patch_size}
            batch = rearrange(pixel_values[start:stop].to(self.dtype), pattern, **size)
            for layer, (spatial, prefix) in zip(wanted, self._intermediates(batch, wanted), strict=True):
                if spatial.shape[2:] != (rows, columns):
                    raise UserError(f"{self.name} does not give {rows}x{columns} features, but {spatial.shape[2:]}")
                patches[layer].append(rearrange(spatial, "n c r k -> (n r k) c"))
                # Registers, where there are any, stand behind the class token.
                class_tokens[layer] += [] if prefix is None else [prefix[:, 0]]
            start = stop
        return Encoded(
            {layer: torch.cat(parts) for layer, parts in patches.items()},
            {layer: torch.cat(parts) for layer, parts in class_tokens.items() if parts},
        )

    def _intermediates(self, batch: Tensor, layers: list[int]) -> list[tuple[Tensor, Tensor | None]]:
        options = {"indices": layers, "intermediates_only": True, "stop_early": True, "output_fmt": "NCHW"}
        try:
            if self.has_class_token:
                return list(self.model.forward_intermediates(batch, return_prefix_tokens=True, **options))
            return [(spatial, None) for spatial in self.model.forward_intermediates(batch, **options)]
        except AssertionError as error:
            raise UserError(f"{self.name} cannot take this size ({error}); leave --resize at auto") from None

    def _check(self, grids: Sequence[Size], layers: Collection[int]) -> None:
        fixed = self.resize.fixed
        if not self.any_size and fixed is not None and set(grids) != {self.resize.grid(fixed, self.patch_size)}:
            raise UserError(f"{self.name} takes only images of {self.resize}; leave --resize at auto")
        for layer in layers:
            reduction = self.model.feature_info[layer]["reduction"]
            if reduction != self.patch_size:
                raise UserError(
                    f"layer {layer} of {self.name} has patches of {reduction} pixels, not {self.patch_size}; use a "
                    f"layer of its last stage, such as {self.num_layers - 1}"
                )

    def final_norm(self, states: Tensor) -> Tensor:
        norm = getattr(self.model, "norm", None)
        if norm is None:
            return states
        if isinstance(norm, _NORMS_OF_MAPS):
            return norm(states.reshape(-1, self.embed_dim, 1, 1)).view_as(states)
        return norm(states)

    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        for name, weight in self.model.state_dict().items():
            if not (name.startswith("blocks.") and int(name.split(".")[1]) > last_layer):
                yield name, weight

    def constants(self) -> dict[str, Any]:
        return {"model": self.name.removeprefix(TIMM).split(".")[0]}

    def bytes_per_token(self) -> int:
        return 24 * self.embed_dim * self.dtype.itemsize


def _gives_prefix_tokens(model: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters


def load_timm(
    name: str, device: torch.device, dtype: torch.dtype, layers: int | None, pretrained: bool = True
) -> TimmBackbone:
    """Loads a timm model; see `load_backbone`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, any_size = _create(name, pretrained)
    if layers is not None:
        depth = len(model.feature_info)
        if not 1 <= layers <= depth:
            raise UserError(f"layers={layers} cannot be loaded; {name} has 1 to {depth}")
        model.prune_intermediate_layers([layers - 1], prune_norm=False, prune_head=True)
        model.feature_info = model.feature_info[:layers]
    return TimmBackbone(name, model.to(device, dtype).eval().requires_grad_(False), any_size)


def _create(name: str, pretrained: bool) -> tuple[Any, bool]:
    """The model, and whether it takes images of any size."""
    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare):
        nearest = timm.list_models(f"*{bare.split('.')[0]}*")[:3]
        hint = f"; there is {', '.join(nearest)}" if nearest else "; timm.list_models() lists all"
        raise CheckpointError(f"timm has no model '{bare}'{hint}")
    try:
        try:
            model, any_size = timm.create_model(bare, pretrained, num_classes=0, dynamic_img_size=True), True
        except TypeError:
            model = timm.create_model(bare, pretrained, num_classes=0)
            any_size = not hasattr(model, "pos_embed") and not any(isinstance(m, PatchEmbed) for m in model.modules())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot load the weights of '{bare}' ({str(error).splitlines()[0]})") from None
    if not hasattr(model, "forward_intermediates"):
        raise CheckpointError(f"timm's '{bare}' does not give its layers (forward_intermediates); take another model")
    return model, any_size


def describe_timm(name: str) -> BackboneSpec:
    """The sizes of a timm model; see `describe`."""
    with torch.device("meta"):
        backbone = TimmBackbone(name, *_create(name, pretrained=False))
    total = sum(weight.numel() for weight in backbone.model.parameters())
    blocks = sum(weight.numel() for key, weight in backbone.model.named_parameters() if key.startswith("blocks."))
    blocks = blocks or total
    return BackboneSpec(
        name=name,
        kind="timm",
        patch_size=backbone.patch_size,
        embed_dim=backbone.embed_dim,
        num_layers=backbone.num_layers,
        block_parameters=blocks // backbone.num_layers,
        other_parameters=total - blocks,
        attention_dim=backbone.embed_dim,
        extra_tokens=int(getattr(backbone.model, "num_prefix_tokens", 0)),
        resize=backbone.resize,
    )
