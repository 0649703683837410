"""Training a dense head so that a killed run goes on and ends with the weights of an uninterrupted one."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from evals.segmentation.batches import Batches
from evals.segmentation.history import open_history
from evals.segmentation.optimization import Optimization
from evals.segmentation.run_folder import CHECKPOINT
from heads.dense import IGNORE
from heads.dense.contract import DenseHead
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import replacing


@dataclass(frozen=True)
class Pace:
    """What is done now and then, in steps.

    Attributes:
        log: How often loss and learning rate are logged; 0 logs them only at the end.
        save: How often a checkpoint is written; 0 writes it only at the end.
        validate: How often the scores are computed while training; 0 is never.
    """

    log: int = 50
    save: int = 100
    validate: int = 0


class Training:
    """One run, in a folder of its own.

    The state is the head, optimizer, schedule, PyTorch's random state and the step. The step is the position in the
    data too, because what a batch holds depends only on its number. On a CPU a resumed run is exact to the bit; on a
    GPU it is so up to the order in which the gradients of interpolation are added.

    Args:
        head: The head to train, already on its device.
        batches: Where batches come from.
        optimization: How it is optimized.
        folder: Where checkpoint and log are kept.
    """

    def __init__(self, head: DenseHead, batches: Batches, optimization: Optimization, folder: Path) -> None:
        self.head = head
        self.batches = batches
        self.optimization = optimization
        self.folder = folder
        self.step = 0
        self.optimizer: Optimizer
        self.scheduler: LambdaLR
        self.optimizer, self.scheduler = optimization.build(head)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.optimization.steps

    def resume(self) -> None:
        """Goes back to the last checkpoint, if there is one.

        Raises:
            UserError: If it is damaged.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, "cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            # PyTorch's messages go on for many lines about what a developer could do.
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is damaged ({reason}); delete it to train from the first step") from None
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        _set_random_states(state["random"])

    def save(self) -> None:
        """Writes a checkpoint in place of the last one."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        with replacing(self.folder / CHECKPOINT) as unfinished:
            torch.save({**parts, "step": self.step, "random": _random_states()}, unfinished)

    def _parts(self) -> dict[str, nn.Module | Optimizer | LambdaLR]:
        return {"head": self.head, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def run(self, pace: Pace, stop: Event, validate: Callable[[], dict[str, Any]]) -> None:
        """Trains to the end, or until `stop` is set; either way the state is saved.

        Args:
            pace: What is done now and then.
            stop: Ends training behind the current step.
            validate: Gives scores for the log.

        Raises:
            UserError: If the loss is not finite.
        """
        progress = tqdm(total=self.optimization.steps, initial=self.step, desc="training", unit="step", disable=None)
        with progress, open_history(self.folder, self.step) as log, closing(self.losses()) as losses:
            recent: list[Tensor] = []
            for loss in losses:
                recent.append(loss)
                progress.update()
                if self._is_due(pace.log):
                    log.append(self._summary(recent))
                    recent.clear()
                if self._is_due(pace.save) or stop.is_set():
                    self.save()
                if stop.is_set():
                    return
                if self._is_due(pace.validate) and not self.finished:
                    log.append({"step": self.step, **validate()})
                    self.head.train()

    def _is_due(self, every: int) -> bool:
        return self.finished or (every > 0 and self.step % every == 0)

    def losses(self) -> Generator[Tensor, None, None]:
        """Takes one step after the other, and yields the loss of each, still on the device."""
        self.head.train()
        with closing(self.batches.between(self.step, self.optimization.steps)) as batches:
            for batch in batches:
                loss = self.head.loss(batch.maps, batch.labels)
                if self.optimization.loss_over == "all":
                    loss = loss * batch.labels.ne(IGNORE).float().mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.step += 1
                yield loss.detach()

    def _summary(self, losses: Sequence[Tensor]) -> dict[str, Any]:
        """A line of the log; the only place where the device is waited for."""
        loss = float(torch.stack(list(losses)).mean())
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.step}; use a lower --learning_rate and --overwrite true")
        return {"step": self.step, "loss": loss, "learning_rate": self.scheduler.get_last_lr()[0]}


def _random_states() -> dict[str, Any]:
    """The states of PyTorch's generators; everything else that is random is a function of the step."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
