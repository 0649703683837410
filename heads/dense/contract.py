"""Contract of dense heads: feature maps in, class logits out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.dense.loss import upsampled_cross_entropy

Labelled = tuple[Sequence[Tensor], Tensor]
"""Maps [n, C, nh, nw] of each layer, and labels uint8 [n, height, width]."""


class DenseHead(nn.Module, ABC):
    """Turns the feature maps of one or more layers into logits of the classes.

    Attributes:
        settings: The arguments from which an equal head can be built.
    """

    settings: dict[str, Any]

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Classifies.

        Args:
            maps: One [n, C, nh, nw] a layer, in the order of the layers that the head was built for.

        Returns:
            Logits [n, classes, h, w] over the same field of view; h and w may differ from the grid's.
        """

    def loss(self, maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of a batch, compared at the size of the labels.

        Args:
            maps: As in `forward`.
            labels: uint8 [n, height, width], `heads.dense.IGNORE` where a pixel does not count.

        Returns:
            A scalar.
        """
        return upsampled_cross_entropy(self(maps), labels)


class OnePassHead(DenseHead):
    """A head that is not trained by its loss, but learns from one look at the data."""

    @abstractmethod
    def fit(self, batches: Iterable[Labelled], count: int) -> None:
        """Learns from `count` batches."""


def concatenate(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several layers as one [n, sum of C, nh, nw], brought to the grid of the first."""
    size = maps[0].shape[2:]
    resized = [m if m.shape[2:] == size else F.interpolate(m, size, mode="bilinear") for m in maps]
    return torch.cat(resized, dim=1)
