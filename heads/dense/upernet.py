"""UperNet on a plain backbone: its decode heads on a simple feature pyramid."""

from collections.abc import Sequence

from torch import Tensor

from heads.contract import HeadError
from heads.dense.contract import DenseHead
from heads.dense.loss import upsampled_cross_entropy
from heads.dense.pyramid import SCALES, PyramidNorm, SimpleFeaturePyramid
from heads.dense.pyramid_pooling import AuxiliaryHead, PyramidHead, set_starting_weights


class UperNetHead(DenseHead):
    """Pyramid pooling and a feature pyramid network (arXiv 1807.10221), with an auxiliary loss while training.

    Args:
        in_channels: Channels of four layers, or of one.
        num_classes: Classes to tell apart.
        channels: Width of the head; 512 is mmsegmentation's, InternVL-6B's has 1536.
        dropout: Share of whole channels that are dropped before the classifier while training.
        auxiliary_channels: Width of the auxiliary head.
        auxiliary_weight: Weight of its loss; 0 leaves the auxiliary head out.
        auxiliary_level: Level of the pyramid that it sits on.
        pyramid_norm: The norm inside the pyramid: `batch`, or `layer` as InternVL has it.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        dropout: float = 0.1,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        auxiliary_level: int = 2,
        pyramid_norm: PyramidNorm = "batch",
    ) -> None:
        super().__init__()
        if not 0 <= auxiliary_level < len(SCALES):
            raise HeadError(f"auxiliary_level is {auxiliary_level}; the pyramid has levels 0 to {len(SCALES) - 1}")
        self.settings = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "channels": channels,
            "dropout": dropout,
            "auxiliary_channels": auxiliary_channels,
            "auxiliary_weight": auxiliary_weight,
            "auxiliary_level": auxiliary_level,
            "pyramid_norm": pyramid_norm,
        }
        self.auxiliary_weight, self.auxiliary_level = auxiliary_weight, auxiliary_level
        self.pyramid = SimpleFeaturePyramid(in_channels, pyramid_norm)
        widths = self.pyramid.out_channels
        self.head = PyramidHead(widths, num_classes, channels, dropout)
        set_starting_weights(self.head)
        self.auxiliary = None
        if auxiliary_weight:
            self.auxiliary = AuxiliaryHead(widths[auxiliary_level], num_classes, auxiliary_channels, dropout)
            set_starting_weights(self.auxiliary)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head(self._levels(maps))

    def loss(self, maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        levels = self._levels(maps)
        loss = upsampled_cross_entropy(self.head(levels), labels)
        if self.auxiliary is not None:
            logits = self.auxiliary(levels[self.auxiliary_level])
            loss = loss + self.auxiliary_weight * upsampled_cross_entropy(logits, labels)
        return loss

    def _levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if self.training and len(maps[0]) < 2:
            raise HeadError("UperNet normalises over the batch, which needs 2 images or more; raise --batch_size")
        return self.pyramid(maps)
