"""Training heads by gradient descent: several learning rates at once, each batch of features used for all of them."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heads.contract import HeadError
from heads.schedules import PUBLISHED, PublishedSchedule
from heads.settings import as_values, check_at_least_zero, check_positive, check_share
from heads.targets import Kind
from sail_encoder.io.files import replacing

OptimizerName = Literal["sgd", "adamw", "lars"]
ScheduleName = Literal["cosine"] | PublishedSchedule
LabelLoss = Literal["mean", "sum"]
"""Whether the losses of an image's labels are averaged or added up."""


@dataclass(frozen=True)
class Recipe:
    """How heads are trained, checked: the settings of `heads.trained.TrainedProbe` of the same names.

    Raises:
        HeadError: If a setting is not possible.
    """

    lrs: tuple[float, ...]
    epochs: float
    least_steps: int
    steps: int | None
    batch_size: int
    lr_batch: int
    optimizer: OptimizerName
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: ScheduleName
    warmup: float
    clip: float
    label_smoothing: float
    label_loss: LabelLoss
    ema: float

    def __post_init__(self) -> None:
        as_values("lrs", self.lrs)
        _check_name("optimizer", self.optimizer, ("sgd", "adamw", "lars"))
        _check_name("schedule", self.schedule, ("cosine", *PUBLISHED))
        _check_name("label_loss", self.label_loss, ("mean", "sum"))
        for name in ("epochs", "lr_batch"):
            check_positive(name, getattr(self, name))
        check_positive("batch_size", self.batch_size, whole=True)
        check_at_least_zero("least_steps", self.least_steps, whole=True)
        for name in ("weight_decay", "clip"):
            check_at_least_zero(name, getattr(self, name))
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            check_share(name, getattr(self, name))
        if self.steps is not None:
            check_positive("steps", self.steps, whole=True)
        if self.nesterov and not self.momentum:
            raise HeadError("nesterov looks ahead by the momentum, which is 0; set momentum, or leave nesterov out")

    def count_steps(self, samples: int) -> int:
        """Steps of the whole training."""
        return self.steps or max(1, self.least_steps, round(self.epochs * samples / min(self.batch_size, samples)))

    def factor(self, step: int, steps: int) -> float:
        """What learning rates are multiplied with in a step, 0 to 1."""
        rising = round(self.warmup * steps)
        if self.schedule != "cosine":
            return PUBLISHED[self.schedule](step, steps, rising)
        if step < rising:
            return (step + 1) / rising
        return (1 + cos(pi * (step - rising) / max(1, steps - rising))) / 2


def _check_name(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise HeadError(f"{name} '{value}' is unknown; use {', '.join(allowed[:-1])} or {allowed[-1]}")


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


class BankTraining:
    """Takes steps of gradient descent for a bank of heads.

    The sum of the heads' losses gives each head the gradient that it would have alone.

    Args:
        bank: The heads.
        recipe: How they are trained.
        steps: How many steps there will be.
        kind: Kind of the targets.
        forward: What to call in place of the bank, such as the bank wrapped for several processes.
    """

    def __init__(
        self,
        bank: HeadBank,
        recipe: Recipe,
        steps: int,
        kind: Kind,
        forward: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.bank = bank
        self.recipe = recipe
        self.kind = kind
        self.forward = forward or bank
        self.optimizer = build_optimizer(bank, recipe)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: recipe.factor(step, steps))
        average = get_ema_multi_avg_fn(recipe.ema)
        self.average = AveragedModel(bank, multi_avg_fn=average, use_buffers=True) if recipe.ema else None
        if self.average:
            # The average begins at the first weights, as timm's does, and not at those behind the first step.
            self.average.n_averaged.fill_(1)

    def step(self, batch: Any, targets: Tensor) -> None:
        """One step for all heads.

        Args:
            batch: What the bank takes.
            targets: Of the batch, see `loss_of`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        smoothing, label_loss = self.recipe.label_smoothing, self.recipe.label_loss
        loss_of(self.forward(batch), targets, self.kind, smoothing, label_loss).sum().backward()
        if self.recipe.clip:
            for parameters in self.bank.head_parameters():
                nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimizer.step()
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.bank)

    def save(self, path: Path, made_of: str, step: int) -> None:
        """Writes a checkpoint, complete or not at all.

        Args:
            path: Where to.
            made_of: All that decides the training, by which another one's checkpoint is told apart.
            step: How many steps are done.
        """
        parts: dict[str, Any] = {
            "bank": self.bank,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": self.average,
        }
        states = {name: part.state_dict() for name, part in parts.items() if part}
        with replacing(path) as unfinished:
            torch.save({"made_of": made_of, "step": step, **states}, unfinished)

    def restore(self, path: Path, made_of: str) -> int:
        """Goes on from a checkpoint of the same training; returns how many steps are done, 0 where there is none."""
        if not path.exists():
            return 0
        states = torch.load(path, map_location="cpu", weights_only=True)
        if states["made_of"] != made_of:
            return 0
        self.bank.load_state_dict(states["bank"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict(states["scheduler"])
        if self.average:
            self.average.load_state_dict(states["average"])
        return int(states["step"])

    def finish(self) -> HeadBank:
        """The bank as it is to be used, in evaluation mode."""
        if self.average:
            self.bank.load_state_dict(self.average.module.state_dict())
        return self.bank.eval()


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


def build_optimizer(bank: HeadBank, recipe: Recipe) -> Optimizer:
    """An optimizer with a learning rate of its own for each head."""
    groups: list[dict[str, Any]] = []
    # LARS adapts the rate of weights alone, as MAE has it, but timm's does so without weight decay only if told.
    adapted, plain = ({"always_adapt": one} if recipe.optimizer == "lars" else {} for one in (True, False))
    for lr, parameters in zip(recipe.lrs, bank.head_parameters(), strict=True):
        scaled = lr * recipe.batch_size / recipe.lr_batch
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        biases = [parameter for parameter in parameters if parameter.ndim == 1]
        groups.append({"params": weights, "lr": scaled, "weight_decay": recipe.weight_decay, **adapted})
        groups.append({"params": biases, "lr": scaled, "weight_decay": 0.0, **plain})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    if recipe.optimizer == "lars":
        from timm.optim import Lars

        return Lars(groups, lr=1.0, momentum=recipe.momentum, nesterov=recipe.nesterov)
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)


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


def effective(recipe: Recipe, samples: int) -> Recipe:
    """The recipe for a set that may be smaller than a batch."""
    return replace(recipe, batch_size=min(recipe.batch_size, samples))
