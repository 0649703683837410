"""Raw patches as a backbone: what a head reaches on pixels alone is the floor that every model is held against."""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from sail_encoder.backbones.base import Encoded, VisionBackbone
from sail_encoder.backbones.spec import describe_raw
from sail_encoder.images.pixels import IMAGENET_MEAN, IMAGENET_STD
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.io.errors import UserError


class RawPatches(VisionBackbone):
    """A backbone of one layer that returns the normalised pixels of each patch.

    Args:
        name: What it was loaded as.
        patch_size: Side of a patch in pixels.
        device: Where features are to be.
        dtype: Their precision.
    """

    image_mean = IMAGENET_MEAN
    image_std = IMAGENET_STD
    num_layers = 1

    def __init__(self, name: str, patch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.name = name
        self.patch_size = patch_size
        self.embed_dim = 3 * patch_size**2
        self.resize = Resize()
        self._device, self._dtype = device, dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def forward_patches(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int]) -> Encoded:
        return Encoded({0: pixel_values.to(self.dtype)})

    def final_norm(self, states: Tensor) -> Tensor:
        return states

    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        yield "patch_size", torch.tensor([self.patch_size])

    def bytes_per_token(self) -> int:
        return 3 * self.embed_dim * self.dtype.itemsize


def load_raw(name: str, device: torch.device, dtype: torch.dtype, layers: int | None) -> RawPatches:
    """Reads `raw/` and a patch size; see `load_backbone`."""
    if layers not in (None, 1):
        raise UserError(f"layers={layers} cannot be loaded; {name} has one layer")
    return RawPatches(name, describe_raw(name).patch_size, device, dtype)
