"""The batch norm in front of heads that are trained by gradient descent."""

from typing import Literal

import torch
from torch import Tensor, nn

from heads.contract import HeadError

BatchNorm = bool | Literal["affine"]
"""None, one without weights, or one with a learned scale and shift of each feature."""


def check_batch_norm(batch_norm: BatchNorm) -> None:
    """Makes sure that this is a batch norm that heads can have.

    Raises:
        HeadError: If it is not.
    """
    if batch_norm not in (True, False, "affine"):
        raise HeadError(f"batch_norm is {batch_norm!r}; use true, false or affine")


def build_norm(dim: int, batch_norm: BatchNorm) -> nn.Module:
    """Norm that all heads of a bank share: statistics, no weights."""
    return nn.BatchNorm1d(dim, affine=False, eps=1e-6) if batch_norm else nn.Identity()


class Affine(nn.Module):
    """A scale and a shift of each feature, which a head learns for itself after the norm that it shares with others.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale + self.shift
