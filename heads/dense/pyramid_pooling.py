"""Decode heads of UPerNet (Xiao et al. 2018, arXiv 1807.10221): the main one over a pyramid, and the auxiliary one.

The names of the parameters are those of transformers' UperNet, under which saved heads keep their weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOL_SIZES = (1, 2, 3, 6)
"""Rows and columns of the grids to which the deepest level is averaged (PSPNet, arXiv 1612.01105, section 3.2)."""


class ConvNormReLU(nn.Module):
    """Convolution without a bias that keeps the size of its map, then batch norm and ReLU.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the result.
        kernel_size: Side of the kernel, an odd number.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.batch_norm(self.conv(x)))


class PyramidPooling(nn.ModuleList):
    """Pyramid pooling of PSPNet: averages of a map over coarser and coarser grids, each with its own projection."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvNormReLU(in_channels, channels, 1)) for size in POOL_SIZES
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map [n, C, h, w] and its projected averages, joined: [n, C + 4 * channels, h, w]."""
        return torch.cat([x, *(_resize(pool(x), x) for pool in self)], dim=1)


class PyramidHead(nn.Module):
    """Pyramid pooling of the deepest level, then a feature pyramid network over all levels, then the classifier.

    Args:
        in_channels: Channels of each level, the largest map first.
        num_classes: Classes to tell apart.
        channels: Width.
        dropout: Share of whole channels that are dropped before the classifier while training.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        *lateral, deepest = in_channels
        # The order in which layers are made decides which random numbers they start from.
        self.classifier = _classifier(channels, num_classes, dropout)
        self.psp_modules = PyramidPooling(deepest, channels)
        self.bottleneck = ConvNormReLU(deepest + len(POOL_SIZES) * channels, channels, 3)
        self.lateral_convs, self.fpn_convs = nn.ModuleList(), nn.ModuleList()
        for width in lateral:
            self.lateral_convs.append(ConvNormReLU(width, channels, 1))
            self.fpn_convs.append(ConvNormReLU(channels, channels, 3))
        self.fpn_bottleneck = ConvNormReLU(len(in_channels) * channels, channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Returns logits [n, classes, h, w] at the size of the first level."""
        merged = self.bottleneck(self.psp_modules(levels[-1]))
        outputs = [merged]
        # From the deepest level up, each takes in what is known further down.
        for level, lateral, smooth in reversed(list(zip(levels, self.lateral_convs, self.fpn_convs, strict=False))):
            projected = lateral(level)
            merged = projected + _resize(merged, projected)
            outputs.insert(0, smooth(merged))
        resized = [outputs[0], *(_resize(output, outputs[0]) for output in outputs[1:])]
        return self.classifier(self.fpn_bottleneck(torch.cat(resized, dim=1)))


class AuxiliaryHead(nn.Module):
    """A convolution and a classifier on one level (FCN, arXiv 1411.4038), for a second loss while training.

    Args:
        in_channels: Channels of the level.
        num_classes: Classes to tell apart.
        channels: Width.
        dropout: Share of whole channels that are dropped before the classifier while training.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNormReLU(in_channels, channels, 3))
        self.classifier = _classifier(channels, num_classes, dropout)

    def forward(self, level: Tensor) -> Tensor:
        """Returns logits [n, classes, h, w] of a level [n, C, h, w]."""
        return self.classifier(self.convs(level))


def set_starting_weights(head: PyramidHead | AuxiliaryHead) -> None:
    """Lets a head start as mmsegmentation's does: the classifier from N(0, 0.01), all else as for ReLU (He et al.).

    PyTorch's own start, which transformers' class keeps, is three to five times smaller.
    """
    for layer in head.modules():
        if isinstance(layer, ConvNormReLU):
            nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")
    for layer in head.classifier:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def _classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, kernel_size=1))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Brings a map to the height and width of another."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
