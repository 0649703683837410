"""Several heads of one shape that see the same batches, one a learning rate."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.targets import Kind

LabelLoss = Literal["mean", "sum"]
"""Reduction of the losses of an image's labels: average or sum."""


class HeadBank(nn.Module):
    """Several heads of one shape, one a learning rate, that see the same batches."""

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Scores [heads, images, outputs]."""

    @abstractmethod
    def head_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each head."""

    @abstractmethod
    def keep(self, index: int) -> None:
        """Drops all heads but one."""


def loss_of(
    scores: Tensor, targets: Tensor, kind: Kind, label_smoothing: float = 0.0, label_loss: LabelLoss = "mean"
) -> Tensor:
    """Mean loss of each head [heads]: cross-entropy, binary cross-entropy, or squared error summed over the numbers.

    Args:
        scores: [heads, images, outputs].
        targets: Indices [images] of classes, or [images, outputs].
        kind: Kind of the targets.
        label_smoothing: Share of a class's target that all classes get in equal parts.
        label_loss: What is done with the binary cross-entropies of an image's labels.
    """
    if kind == "classification":
        losses = F.cross_entropy(
            scores.flatten(0, 1), targets.repeat(len(scores)), reduction="none", label_smoothing=label_smoothing
        )
        return losses.view(len(scores), -1).mean(1)
    wanted = targets.to(scores.dtype).expand_as(scores)
    if kind == "regression":
        return F.mse_loss(scores, wanted, reduction="none").sum(2).mean(1)
    losses = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    return (losses.mean(2) if label_loss == "mean" else losses.sum(2)).mean(1)


def shuffled_batches(samples: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Sorted indices of each batch; every sample comes once an epoch, and what does not fill a batch waits.

    Args:
        samples: How many there are.
        batch_size: How many of them in a batch.
        steps: How many batches.
        seed: Which order.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, samples)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.cat((waiting, torch.randperm(samples, generator=generator)))
        # Sorted, because rows of a memory map are read in order.
        yield waiting[:size].sort().values
        waiting = waiting[size:]
