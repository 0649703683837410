"""How a head is optimized: rule, learning rate over time, batches."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sail_encoder.io.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["poly", "cosine", "constant"]

WARMUP_START = 1e-6
"""Share of the learning rate at which a warm-up starts, as in mmsegmentation's and DINOv3's settings."""


@dataclass(frozen=True)
class Optimization:
    """How a head is optimized.

    Attributes:
        steps: Batches in all.
        batch_size: Crops in a batch.
        optimizer: AdamW, or stochastic gradient descent with momentum 0.9.
        learning_rate: Its highest value.
        weight_decay: As the optimizer has it.
        schedule: How the rate falls behind the warm-up: in a line to zero (`poly`, mmsegmentation's PolyLR of power 1),
            along half a cosine to zero, or not at all.
        warmup: Steps in which the rate rises in a line.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float
    schedule: ScheduleName
    warmup: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} cannot be {getattr(self, name)}; allowed is 1 or more")
        if not 0 <= self.warmup < self.steps:
            raise UserError(f"--warmup cannot be {self.warmup}; allowed is 0 to {self.steps - 1}, below --steps")
        if self.learning_rate <= 0:
            raise UserError(f"--learning_rate cannot be {self.learning_rate}; allowed is more than 0")
        if self.weight_decay < 0:
            raise UserError(f"--weight_decay cannot be {self.weight_decay}; allowed is 0 or more")

    def rate(self, step: int) -> float:
        """The learning rate of a step as a share of its highest value."""
        if step < self.warmup:
            return WARMUP_START + (1 - WARMUP_START) * step / self.warmup
        gone = (step - self.warmup) / (self.steps - self.warmup)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * gone)) / 2
        return 1 - gone if self.schedule == "poly" else 1.0

    def build(self, head: "nn.Module") -> "tuple[Optimizer, LambdaLR]":
        """The optimizer of a head and its schedule, before the first step."""
        from torch.optim import SGD, AdamW
        from torch.optim.lr_scheduler import LambdaLR

        optimizer: Optimizer
        if self.optimizer == "adamw":
            optimizer = AdamW(head.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        else:
            optimizer = SGD(head.parameters(), self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, self.rate)
