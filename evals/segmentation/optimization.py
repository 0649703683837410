"""How a head is optimized: rule, learning rate over time, batches."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from heads.schedules import PUBLISHED, WARMUP_START, PublishedSchedule
from sail_encoder.io.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["poly", "cosine", "constant"] | PublishedSchedule
CountedPixels = Literal["labelled", "all"]
"""Which pixels the loss of a batch is a mean over."""


@dataclass(frozen=True)
class Optimization:
    """How a head is optimized.

    Attributes:
        steps: Batches in all.
        batch_size: Crops in a batch.
        optimizer: AdamW, or stochastic gradient descent with momentum 0.9.
        learning_rate: Its highest value.
        weight_decay: As the optimizer has it.
        schedule: How the rate falls behind the warm-up: in a line to zero (`poly`), along half a cosine to zero, or
            not at all; or as in the code of a published recipe, see `heads.schedules`.
        warmup: Steps in which the rate rises in a line.
        decay_norms: Whether weight decay applies to norms and biases too.
        loss_over: The pixels over which the loss is a mean: those with a label, or all of them, as mmsegmentation's
            default and DINOv3 have it; then the loss is smaller, the fewer pixels have a label.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float
    schedule: ScheduleName
    warmup: int
    decay_norms: bool = True
    loss_over: CountedPixels = "labelled"

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
        if self.schedule in PUBLISHED:
            return PUBLISHED[self.schedule](step, self.steps, self.warmup)
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

        spared = [] if self.decay_norms else [weight for weight in head.parameters() if weight.ndim == 1]
        decayed = [weight for weight in head.parameters() if self.decay_norms or weight.ndim > 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        optimizer: Optimizer
        if self.optimizer == "adamw":
            optimizer = AdamW(groups, self.learning_rate)
        else:
            optimizer = SGD(groups, self.learning_rate, momentum=0.9)
        return optimizer, LambdaLR(optimizer, self.rate)
