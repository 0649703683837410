"""A pyramid of scales from a plain backbone, whose maps all have one."""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.contract import HeadError

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Size of each level relative to the grid of patches."""


class SimpleFeaturePyramid(nn.Module):
    """Four maps of 4, 2, 1 and 1/2 times the grid, as BEiT's and InternVL's UperNets have them (arXiv 2106.08254).

    Args:
        in_channels: Channels of four layers, shallow to deep, one for each level; or of one layer, from which all
            levels are made, as in ViTDet (arXiv 2203.16527).
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        if len(in_channels) not in (1, len(SCALES)):
            raise HeadError(
                f"a pyramid is made of 1 or {len(SCALES)} layers, not {len(in_channels)}; use layers -1 or even4"
            )
        self.out_channels = list(in_channels) * (len(SCALES) // len(in_channels))
        self.levels = nn.ModuleList(
            _rescaling(channels, scale) for channels, scale in zip(self.out_channels, SCALES, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Rescales maps [n, C, nh, nw]; the largest level comes first."""
        sources = list(maps) * (len(SCALES) // len(maps))
        return [level(source) for level, source in zip(self.levels, sources, strict=True)]


def _rescaling(channels: int, scale: float) -> nn.Module:
    if scale == 4:
        return nn.Sequential(_doubling(channels), nn.BatchNorm2d(channels), nn.GELU(), _doubling(channels))
    if scale == 2:
        return _doubling(channels)
    if scale == 1:
        return nn.Identity()
    # Rounding up keeps a row of an odd grid, and a grid of one row.
    return nn.MaxPool2d(2, ceil_mode=True)


def _doubling(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
