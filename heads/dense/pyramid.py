"""A pyramid of scales from a plain backbone, whose maps all have one."""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

from torch import Tensor, nn

from heads.contract import HeadError

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Size of each level relative to the grid of patches."""

PyramidNorm = Literal["batch", "layer"]


class SimpleFeaturePyramid(nn.Module):
    """Four maps of 4, 2, 1 and 1/2 times the grid, as BEiT's and InternVL's UperNets have them (arXiv 2106.08254).

    Args:
        in_channels: Channels of four layers, shallow to deep, one for each level; or of one layer, from which all
            levels are made, as in ViTDet (arXiv 2203.16527).
        norm: The norm between the two doublings of the largest level: `batch`, as BEiT has it, or `layer`, over the
            channels of each place, as InternVL.

    Raises:
        HeadError: If a pyramid cannot be made of so many layers, or the norm is unknown.
    """

    def __init__(self, in_channels: Sequence[int], norm: PyramidNorm = "batch") -> None:
        super().__init__()
        if norm not in ("batch", "layer"):
            raise HeadError(f"the norm of a pyramid is '{norm}'; use batch or layer")
        if len(in_channels) not in (1, len(SCALES)):
            raise HeadError(
                f"a pyramid is made of 1 or {len(SCALES)} layers, not {len(in_channels)}; use layers -1 or even4"
            )
        self.out_channels = list(in_channels) * (len(SCALES) // len(in_channels))
        self.levels = nn.ModuleList(
            _rescaling(channels, scale, norm) for channels, scale in zip(self.out_channels, SCALES, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Rescales maps [n, C, nh, nw]; the largest level comes first."""
        sources = list(maps) * (len(SCALES) // len(maps))
        return [level(source) for level, source in zip(self.levels, sources, strict=True)]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps [n, C, h, w]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _rescaling(channels: int, scale: float, norm: PyramidNorm) -> nn.Module:
    if scale == 4:
        between = nn.BatchNorm2d(channels) if norm == "batch" else ChannelNorm(channels, eps=1e-6)
        return nn.Sequential(_doubling(channels), between, nn.GELU(), _doubling(channels))
    if scale == 2:
        return _doubling(channels)
    if scale == 1:
        return nn.Identity()
    # Rounding up keeps a row of an odd grid, and a grid of one row.
    return nn.MaxPool2d(2, ceil_mode=True)


def _doubling(channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as InternVL's does, from a deviation that keeps the size of gradients."""
    doubling = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
    nn.init.normal_(doubling.weight, std=sqrt(2 / (4 * channels)))
    nn.init.zeros_(doubling.bias)  # type: ignore[arg-type]
    return doubling
