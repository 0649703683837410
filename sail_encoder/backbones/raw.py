"""Raw patches as a backbone: what a head reaches on pixels alone is the floor that every model is held against."""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from sail_encoder.backbones.batch import Encoded
from sail_encoder.backbones.descriptions import describe_raw
from sail_encoder.backbones.packed import PackedBackbone
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError


class RawPatches(PackedBackbone):
    """A backbone of one layer that returns the normalised pixels of each patch.

    Args:
        spec: What it is.
        device: Where features are to be.
        dtype: Their precision.
    """

    def __init__(self, spec: BackboneSpec, device: torch.device, dtype: torch.dtype) -> None:
        self.spec = spec
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


def load_raw(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
) -> RawPatches:
    """Reads `raw/` and a patch size; see `load_backbone`."""
    if layers not in (None, 1):
        raise UserError(f"layers={layers} cannot be loaded; {name} has one layer")
    return RawPatches(describe_raw(name), device, dtype)
