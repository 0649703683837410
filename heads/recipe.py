"""Recipe of a training by gradient descent: optimizer, learning rates over time, steps and batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

from heads.contract import HeadError
from heads.schedules import DECAYS, WHOLE, ScheduleName
from heads.settings import as_values, check_at_least_zero, check_one_of, check_positive, check_share

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

OptimizerName = Literal["adamw", "sgd", "lars"]


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training, checked.

    Attributes:
        learning_rates: Highest value of the learning rate; one per head where several are trained at once.
        steps: How many steps, or None if epochs are counted, see `for_samples`.
        epochs: Passes over the training set.
        least_steps: How many steps at least: small sets are passed more often.
        batch_size: Samples in a batch, of all processes together.
        base_batch_size: Batch that the learning rates are meant for, with which they grow; None takes them as they are.
        optimizer: `adamw`, `sgd` or `lars`.
        momentum: Of sgd and lars.
        nesterov: Whether momentum looks ahead, of sgd and lars.
        weight_decay: As the optimizer has it.
        decay_norms: Whether weight decay applies to norms and biases too.
        schedule: How learning rates fall after the warm-up: in a line to zero (`poly`), along half a cosine to zero
            (`cosine`) or not at all (`constant`); or a course with a warm-up of its own, see `heads.schedules`.
        warmup: Steps over which learning rates rise in a line; below 1 a share of all steps.
        warmup_start: Share of the learning rate in the first step of the warm-up, from which it rises to the first step
            after it; None gives each step the rate at its own end, so that the first has one step's share.
        clip: Largest norm of the gradient of a head; 0 leaves gradients as they are.
        ema: Decay of the moving average of the weights that is used in the end; 0 takes the last weights.

    Raises:
        HeadError: If a setting is not possible.
    """

    learning_rates: tuple[float, ...]
    steps: int | None = None
    epochs: float = 10
    least_steps: int = 0
    batch_size: int = 128
    base_batch_size: int | None = None
    optimizer: OptimizerName = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_norms: bool = True
    schedule: ScheduleName = "cosine"
    warmup: float = 0.0
    warmup_start: float | None = None
    clip: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        as_values("learning_rates", self.learning_rates)
        check_one_of("optimizer", self.optimizer, get_args(OptimizerName))
        check_one_of("schedule", self.schedule, get_args(ScheduleName))
        check_positive("epochs", self.epochs)
        check_positive("batch_size", self.batch_size, whole=True)
        check_at_least_zero("least_steps", self.least_steps, whole=True)
        for name in ("weight_decay", "clip"):
            check_at_least_zero(name, getattr(self, name))
        for name in ("momentum", "ema"):
            check_share(name, getattr(self, name))
        if self.steps is not None:
            check_positive("steps", self.steps, whole=True)
        if self.base_batch_size is not None:
            check_positive("base_batch_size", self.base_batch_size)
        self._check_warmup()
        if self.nesterov and not self.momentum:
            raise HeadError("nesterov looks ahead by the momentum, which is 0; set momentum, or leave nesterov out")

    def _check_warmup(self) -> None:
        check_at_least_zero("warmup", self.warmup)
        if self.warmup >= 1 and not isinstance(self.warmup, Integral):
            raise HeadError(f"warmup is {self.warmup}; give a share of the steps below 1, or a whole number of steps")
        if self.warmup >= 1 and self.steps is not None and self.warmup >= self.steps:
            raise HeadError(f"warmup is {self.warmup}; allowed is less than the {self.steps} steps of the training")
        if self.warmup_start is not None:
            check_share("warmup_start", self.warmup_start)

    def for_samples(self, samples: int) -> "Recipe":
        """The recipe for a training set: epochs become steps, and a batch is no larger than the set."""
        batch_size = min(self.batch_size, samples)
        steps = self.steps or max(1, self.least_steps, round(self.epochs * samples / batch_size))
        return replace(self, batch_size=batch_size, steps=steps)

    @property
    def all_steps(self) -> int:
        """Number of steps of the training.

        Raises:
            HeadError: If that depends on the training set.
        """
        if self.steps is None:
            raise HeadError("this recipe counts epochs, so its steps depend on the training set; call for_samples")
        return self.steps

    def factor(self, step: int) -> float:
        """Factor on the learning rates in a step, 0 to 1."""
        steps = self.all_steps
        rising = int(self.warmup) if self.warmup >= 1 else round(self.warmup * steps)
        if self.schedule in WHOLE:
            return WHOLE[self.schedule](step, steps, rising)
        if step < rising:
            start = self.warmup_start
            return (step + 1) / rising if start is None else start + (1 - start) * step / rising
        return DECAYS[self.schedule]((step - rising) / max(1, steps - rising))

    def build_optimizer(self, heads: "Sequence[Sequence[nn.Parameter]]") -> "Optimizer":
        """An optimizer before its first step, with a learning rate of its own for each head.

        Args:
            heads: The parameters of each head, as many as there are learning rates.
        """
        import torch

        pairs = zip(self._scaled_rates(), heads, strict=True)
        groups = [group for rate, head in pairs for group in self._split(rate, head)]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups)
        if self.optimizer == "lars":
            from timm.optim import Lars

            return Lars(groups, lr=1.0, momentum=self.momentum, nesterov=self.nesterov)
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov)

    def _scaled_rates(self) -> list[float]:
        if self.base_batch_size is None:
            return list(self.learning_rates)
        return [rate * self.batch_size / self.base_batch_size for rate in self.learning_rates]

    def _split(self, rate: float, head: "Sequence[nn.Parameter]") -> list[dict[str, Any]]:
        """The groups of a head: weights, then biases and what else has one dimension."""
        groups = []
        for is_weight in (True, False):
            parameters = [parameter for parameter in head if (parameter.ndim > 1) == is_weight]
            decay = self.weight_decay if is_weight or self.decay_norms else 0.0
            # LARS adapts the rate of weights alone, as MAE has it; timm's does so without weight decay only on demand.
            lars = {"always_adapt": is_weight} if self.optimizer == "lars" else {}
            groups.append({"params": parameters, "lr": rate, "weight_decay": decay, **lars})
        return [group for group in groups if group["params"]]
