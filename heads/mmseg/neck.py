"""The neck between a plain backbone and mmsegmentation's pyramid heads."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from heads.dense.pyramid import PyramidNorm, SimpleFeaturePyramid


@MODELS.register_module()
class FeaturePyramidNeck(BaseModule):
    """Four maps of 4, 2, 1 and 1/2 times the grid, from four layers or from one; see `SimpleFeaturePyramid`.

    Args:
        in_channels: Channels of each layer.
        norm: The norm inside it, batch or layer.
    """

    def __init__(self, in_channels: Sequence[int], norm: PyramidNorm = "batch") -> None:
        super().__init__()
        self.pyramid = SimpleFeaturePyramid(in_channels, norm)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.pyramid(inputs))
