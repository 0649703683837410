"""The linear head of DINOv2's and DINOv3's segmentation protocol."""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.dense.contract import DenseHead, concatenate


class LinearHead(DenseHead):
    """Batch norm and a 1x1 convolution on the maps of one layer, or of several ("multi-scale linear").

    The norm evens out layers of different scale before they are weighed against each other. Weights start from
    N(0, 0.01), biases from zero (arXiv 2304.07193, section 7.4; the published training code of arXiv 2508.10104).

    Args:
        in_channels: Channels of each layer's map.
        num_classes: Classes to tell apart.
        dropout: Share of whole channels that are dropped while training; DINOv2 has 0, DINOv3 0.1.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.settings = {"in_channels": list(in_channels), "num_classes": num_classes, "dropout": dropout}
        self.dropout = nn.Dropout2d(dropout)
        self.norm = nn.BatchNorm2d(sum(in_channels))
        self.classifier = nn.Conv2d(sum(in_channels), num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.norm(self.dropout(concatenate(maps))))
