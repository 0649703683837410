"""SAIL as a vision backbone."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sail_encoder.backbones.batch import Encoded
from sail_encoder.backbones.descriptions import sail_spec_of
from sail_encoder.backbones.packed import PackedBackbone
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.resizing import Size
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.sail.checkpoint import load_encoder, open_sail, random_encoder
from sail_encoder.models.sail.modeling_sail import SailModel


class SailVisionBackbone(PackedBackbone):
    """Images alone through a `SailModel`.

    Args:
        spec: What it is.
        model: The model, in evaluation mode.
    """

    def __init__(self, spec: BackboneSpec, model: SailModel) -> None:
        self.spec = replace(spec, num_layers=model.config.num_hidden_layers)
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.vis_embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.vis_embed.weight.dtype

    def forward_patches(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int]) -> Encoded:
        return Encoded(self.model.encode_images(pixel_values, torch.tensor(grids), layers, norm=False))

    def final_norm(self, states: Tensor) -> Tensor:
        return self.model.norm(states)

    def named_weights(self, last_layer: int) -> Iterable[tuple[str, Tensor]]:
        for name, weight in self.model.state_dict().items():
            if not name.startswith("layers.") or int(name.split(".")[1]) <= last_layer:
                yield name, weight

    def constants(self) -> dict[str, Any]:
        config = self.model.config
        names = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act", "rotary_base")
        return {name: getattr(config, name) for name in names}

    def bytes_per_token(self) -> int:
        config = self.model.config
        return (8 * config.hidden_size + 3 * config.intermediate_size) * self.dtype.itemsize


def load_sail(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    revision: str | None = None,
    pretrained: bool = True,
    **token_ids: int,
) -> SailVisionBackbone:
    """Loads the encoder of a SAIL checkpoint, published or native; see `load_backbone`."""
    folder = find_checkpoint(name, revision)
    checkpoint = open_sail(folder, **token_ids)
    build = load_encoder if pretrained else random_encoder
    return SailVisionBackbone(sail_spec_of(folder, name), build(checkpoint, device, dtype, layers))
