"""Any timm model as a vision backbone, for comparison with SAIL."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from einops import rearrange
from timm.data import resolve_model_data_config
from timm.layers import LayerNorm2d, PatchEmbed, RmsNorm2d
from torch import Tensor, nn

from sail_encoder.backbones.batch import Encoded
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.backbones.stacked import StackedBackbone
from sail_encoder.images.resizing import MAX_TOKENS, Resize
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.hub import TIMM

_NORMS_OF_MAPS = (LayerNorm2d, RmsNorm2d, nn.BatchNorm2d, nn.GroupNorm)
"""Norms that take [n, C, height, width], not [n, C]."""


class TimmBackbone(StackedBackbone):
    """A timm model, through its `forward_intermediates`.

    Images are squashed to the size that the model was trained at, unless another rule is asked for. A layer is a block
    of a plain transformer, or a stage of a hierarchical model; stages other than the last have another patch size and
    are refused.
    """

    def forward_stack(self, pixel_values: Tensor, layers: Sequence[int]) -> Encoded:
        self._check_layers(layers)
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
        except AssertionError as error:
            raise UserError(f"{self.name} cannot take this size ({error}); leave --resize at auto") from None

    def _check_layers(self, layers: Sequence[int]) -> None:
        """Makes sure that these layers have the patches that images are cut into."""
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


def _gives_prefix_tokens(model: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters


def load_timm(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
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
    model = model.to(device, dtype).eval().requires_grad_(False)
    return TimmBackbone(_describe_model(name, model), model, any_size)


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


def describe_timm(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads the sizes of a timm model from the model itself, built without weights.

    Raises:
        CheckpointError: If there is no such model, or it does not give its layers.
    """
    with torch.device("meta"):
        model, _any_size = _create(name, pretrained=False)
    return _describe_model(name, model)


def _describe_model(name: str, model: Any) -> BackboneSpec:
    data, last = resolve_model_data_config(model), model.feature_info[-1]
    total = sum(weight.numel() for weight in model.parameters())
    blocks = sum(weight.numel() for key, weight in model.named_parameters() if key.startswith("blocks.")) or total
    return BackboneSpec(
        name=name,
        family="timm",
        patch_size=int(last["reduction"]),
        embed_dim=int(last["num_chs"]),
        num_layers=len(model.feature_info),
        block_parameters=blocks // len(model.feature_info),
        other_parameters=total - blocks,
        attention_dim=int(last["num_chs"]),
        extra_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        has_class_token=getattr(model, "cls_token", None) is not None and _gives_prefix_tokens(model),
        resize=Resize(tuple(data["input_size"][1:]), MAX_TOKENS),
        resample=data["interpolation"].upper(),
        image_mean=tuple(data["mean"]),
        image_std=tuple(data["std"]),
    )
