"""Any of our backbones as a frozen backbone of mmsegmentation."""

from collections.abc import Sequence
from typing import cast

import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.layers import resolve_layers
from sail_encoder.backbones.registry import describe, load_backbone
from sail_encoder.io.errors import UserError


@MODELS.register_module()
class SailBackbone(BaseModule):
    """A frozen backbone that returns one map a layer and computes nothing beyond the deepest.

    It normalises pixels itself, as each backbone needs it, so the data preprocessor leaves out mean and std. Its
    weights are no part of mmsegmentation's checkpoints: they are loaded with the first batch, onto its device, and
    never change.

    Args:
        model: sail-tiny, a folder, a name on the Hugging Face Hub, timm/NAME, hf/NAME or raw/14.
        out_indices: Blocks whose output is returned, in this order; negatives count from the end.
        norm: Whether to apply the model's final norm to each.
        dtype: Precision of the backbone; auto is bfloat16 on a GPU and float32 on a CPU. Maps are float32.

    Raises:
        UserError: If there is no such backbone or layer.
    """

    def __init__(
        self, model: str = "sail-tiny", out_indices: Sequence[int] = (-1,), norm: bool = True, dtype: str = "auto"
    ) -> None:
        super().__init__()
        spec = describe(model)
        self.model = model
        self.layers = [resolve_layers([index], spec.num_layers)[0] for index in out_indices]
        self.norm = norm
        self.dtype = dtype
        spec = spec.at(self.layers)
        self.patch_size = spec.patch_size
        self.embed_dim = spec.embed_dim
        self._loaded: VisionBackbone | None = None

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encodes RGB images [n, 3, height, width] with levels from 0 to 255.

        Sides that patches do not tile are enlarged to the next that they do; maps cover the same field of view.

        Returns:
            For each of `out_indices` float32 [n, C, nh, nw].

        Raises:
            UserError: If the pixels have been normalised already.
        """
        self._check(x)
        backbone = self.load(x.device)
        size = [-(-side // self.patch_size) * self.patch_size for side in x.shape[2:]]
        if size != list(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear")
        mean, std = (
            x.new_tensor(values)[:, None, None] for values in (backbone.spec.image_mean, backbone.spec.image_std)
        )
        layers = sorted(set(self.layers))
        maps = backbone.forward_intermediates((x / 255 - mean) / std, layers, norm=self.norm, intermediates_only=True)
        by_layer: dict[int, Tensor] = dict(zip(layers, cast("list[Tensor]", maps), strict=True))
        return tuple(by_layer[layer].float() for layer in self.layers)

    def load(self, device: torch.device) -> VisionBackbone:
        """The backbone, loaded when it is first asked for."""
        if self._loaded is None:
            self._loaded = load_backbone(self.model, str(device), self.dtype, max(self.layers) + 1)
        return self._loaded

    def _check(self, x: Tensor) -> None:
        """Looks at the first batch for a common mistake; later ones are not waited for."""
        if self._loaded is None and float(x.min()) < 0:
            raise UserError(
                f"{self.model} was given pixels below 0; it normalises them itself, so remove mean and std from the "
                "data_preprocessor"
            )
