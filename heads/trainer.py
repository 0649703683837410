"""The one trainer of this project: probes, dense heads and whole models are trained by it.

A run that is killed anywhere and given again ends with the weights of one that was never stopped. That holds as long as
what a batch holds depends on nothing but its number: the step is the position in the data too.
"""

import json
import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from heads.processes import Processes
from heads.recipe import Recipe
from sail_encoder.io.errors import StoreError, UserError, name_changes
from sail_encoder.io.files import replacing, require_regular
from sail_encoder.io.json_lines import LineLog, read_lines
from sail_encoder.io.signals import Interrupt
from sail_encoder.io.typed import require_fields, require_type

FORMAT = 1
"""Of checkpoints."""

_FIELDS = ("format", "settings", "step", "states", "random")
_FROM_THE_START = "delete it to train from the first step"
_REMEDY = "delete the line"

Batches = Callable[[int, int], Generator[Any, None, None]]
"""Gives the batches of the steps from a first one up to, but not with, a last one."""


class Trainer:
    """Takes steps of gradient descent, and keeps what it takes to go on.

    Learning rates follow the recipe, and losses are read from the device only where the log has a line. A checkpoint
    holds the weights, their moving average, the optimizers, PyTorch's random states and the step. On a CPU a resumed
    run is exact to the bit; on a GPU it is so up to the order in which gradients are added.

    Args:
        module: What is trained, on its device.
        recipe: How, with its number of steps.
        loss: The loss of a batch as a scalar, from the module and the batch. Where there are several processes, it gets
            the module wrapped, so that they average their gradients.
        heads: The parameters that each of the recipe's learning rates is for; all that have gradients by default.
        optimizers: In place of the recipe's.
        checkpoint: File of the checkpoint; without one nothing is kept, and signals end the process as ever.
        log: File of the log, if there is to be one.
        settings: All that decides the weights, as JSON: only a checkpoint of the same is gone on from.
        processes: Who trains.

    Attributes:
        step: How many steps are done.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        loss: Callable[[Any, Any], Tensor],
        *,
        heads: Sequence[Sequence[nn.Parameter]] | None = None,
        optimizers: Sequence[Optimizer] | None = None,
        checkpoint: Path | None = None,
        log: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.module, self.recipe, self.loss = module, recipe, loss
        self.checkpoint, self.log = checkpoint, log
        self.settings = json.dumps(settings or {})
        self.processes = processes or Processes()
        self.heads = heads or [[parameter for parameter in module.parameters() if parameter.requires_grad]]
        self.optimizers = optimizers or [recipe.build_optimizer(self.heads)]
        for group in self._groups():
            group["initial_lr"] = group["lr"]
        self.wrapped = self.processes.wrap(module)
        average = get_ema_multi_avg_fn(recipe.ema)
        self.average = AveragedModel(module, multi_avg_fn=average, use_buffers=True) if recipe.ema else None
        if self.average:
            # The average begins at the first weights, as timm's does, and not at those after the first step.
            self.average.n_averaged.fill_(1)
        self.step = 0

    @property
    def finished(self) -> bool:
        """Tells whether all steps are done."""
        return self.step == self.recipe.all_steps

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def run(
        self,
        batches: Batches,
        *,
        log_every: int = 0,
        save_every: int = 0,
        validate_every: int = 0,
        validate: Callable[[], Mapping[str, Any]] = dict,
        title: str = "training",
    ) -> int:
        """Trains to the end, or until SIGINT or SIGTERM comes; either way the state is saved.

        Args:
            batches: Where batches come from; its generator is closed at the end.
            log_every: Steps between lines of the log; 0 writes one only at the end.
            save_every: Steps between checkpoints; 0 writes one only at the end.
            validate_every: Steps between calls of `validate`; 0 is never. There is none at the end.
            validate: Gives scores for the log.
            title: Name of the progress bar.

        Returns:
            0, or the exit status where a signal has stopped any of the processes.

        Raises:
            UserError: If the loss in the log is not finite, or another run is writing the log.
        """
        self.module.train()
        with ExitStack() as stack:
            log = stack.enter_context(self._open_log(self.log)) if self.log and not self.processes.rank else None
            interrupt = stack.enter_context(Interrupt(lambda: None)) if self.checkpoint else None
            recent: list[Tensor] = []
            for loss in stack.enter_context(closing(self._steps(batches, title))):
                if log:
                    recent.append(loss)
                if log and self._is_due(log_every):
                    log.append(self._summary(recent))
                    recent.clear()
                stopped = self._stopped_by(interrupt)
                if stopped or self._is_due(save_every):
                    self.save()
                if stopped:
                    self._announce_stop()
                    return stopped
                if log and validate_every and self._is_due(validate_every) and not self.finished:
                    log.append({"step": self.step, **validate()})
                    self.module.train()
        return 0

    def _steps(self, batches: Batches, title: str) -> Generator[Tensor, None, None]:
        """Takes the steps that are left, and yields the loss of each."""
        steps, quiet = self.recipe.all_steps, True if self.processes.rank else None
        bar = tqdm(total=steps, initial=self.step, desc=title, unit="step", leave=bool(self.checkpoint), disable=quiet)
        with bar, closing(batches(self.step, steps)) as source:
            for batch in source:
                yield self.train_step(batch)
                bar.update()

    def train_step(self, batch: Any) -> Tensor:
        """Takes one step; returns the loss of the batch, still on the device."""
        factor = self.recipe.factor(self.step)
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.wrapped, batch)
        loss.backward()
        if self.recipe.clip:
            for parameters in self.heads:
                nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average:
            self.average.update_parameters(self.module)
        self.step += 1
        return loss.detach()

    def finish(self) -> nn.Module:
        """The module in evaluation mode, with the moving average of its weights where the recipe has one."""
        if self.average:
            self.module.load_state_dict(self.average.module.state_dict())
        return self.module.eval()

    def save(self) -> None:
        """Writes the checkpoint, complete or not at all; only the first process does."""
        if self.checkpoint is None:
            return
        random = self.processes.gather(_random_states())
        if self.processes.rank == 0:
            states = {name: part.state_dict() for name, part in self._parts().items()}
            with replacing(self.checkpoint) as unfinished:
                head = {"format": FORMAT, "settings": self.settings, "step": self.step}
                _write({**head, "states": states, "random": random}, unfinished)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one.

        Raises:
            UserError: If it is damaged, or of another version.
            StoreError: If it is of a run with other settings, or processes find different ones.
        """
        found = _read(self.checkpoint) if self.checkpoint and self.checkpoint.exists() else None
        if found:
            self._require_same_settings(found["settings"])
        steps = self.processes.gather(found["step"] if found else 0)
        if len(set(steps)) > 1:
            listed = ", ".join(map(str, steps))
            raise StoreError(
                f"processes find different steps in {self.checkpoint}: {listed}; let them share the folder --out"
            )
        if found:
            self._restore(found)

    def _restore(self, found: Mapping[str, Any]) -> None:
        """Takes on the state of a checkpoint.

        Raises:
            UserError: If it does not fit the module and the optimizers, or is not of these steps.
        """
        try:
            if not 0 <= found["step"] <= self.recipe.all_steps:
                raise ValueError(f"its step is {found['step']:,} of {self.recipe.all_steps:,}")
            for name, part in self._parts().items():
                part.load_state_dict(found["states"][name])
            if len(found["random"]) == self.processes.count:
                _set_random_states(found["random"][self.processes.rank])
        # What PyTorch raises of a state that does not fit depends on the part that it meets first.
        except Exception as error:
            assert self.checkpoint
            raise _damaged(self.checkpoint, error) from None
        self.step = found["step"]

    def _require_same_settings(self, earlier: str) -> None:
        changes = name_changes(json.loads(earlier), json.loads(self.settings))
        if changes:
            raise StoreError(
                f"{self.checkpoint} is of an unfinished training with other settings: {changes}; use another --out, or "
                "delete the file"
            )

    def _parts(self) -> dict[str, Any]:
        """Objects whose state a checkpoint holds."""
        optimizers = {f"optimizer {index}": optimizer for index, optimizer in enumerate(self.optimizers)}
        average = {"average": self.average} if self.average else {}
        return {"module": self.module, **optimizers, **average}

    def _is_due(self, every: int) -> bool:
        return self.finished or (every > 0 and self.step % every == 0)

    def _stopped_by(self, interrupt: Interrupt | None) -> int:
        """The exit status if a signal ends the training: all processes stop after the same step."""
        status = max(self.processes.gather(interrupt.status if interrupt else 0))
        return 0 if self.finished else status

    def _announce_stop(self) -> None:
        if self.processes.rank == 0:
            print(f"stopped at step {self.step:,}; the same command goes on", file=sys.stderr)

    def _open_log(self, path: Path) -> LineLog:
        """The log as far as the step; what a killed run had logged beyond it is dropped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        log = LineLog(path, _as_line, _REMEDY)
        try:
            log.keep(lambda line: line["step"] <= self.step)
        except StoreError:
            log.close()
            raise
        return log

    def _summary(self, losses: Sequence[Tensor]) -> dict[str, Any]:
        """A line of the log; the only place where the device is waited for."""
        loss = float(torch.stack(list(losses)).mean())
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.step}; use a lower --learning_rate and another --out")
        rate = self._groups()[0]["initial_lr"] * self.recipe.factor(self.step)
        return {"step": self.step, "loss": loss, "learning_rate": rate}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; none where there is no log.

    Raises:
        StoreError: If one is damaged.
    """
    return list(read_lines(path, _as_line, _REMEDY)) if path.exists() else []


def _as_line(line: Any) -> dict[str, Any]:
    kinds = dict.fromkeys(("loss", "learning_rate", "mIoU", "mAcc", "aAcc"), float | None)
    fields = require_fields(line, {"step": int, **kinds})
    if "step" not in fields:
        raise TypeError("it names no step")
    return fields


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint, whose weights are still to be compared with the module's.

    Raises:
        UserError: If it is damaged, or of another version.
        OSError: If it cannot be opened, or is no regular file.
    """
    require_regular(path)
    try:
        found = torch.load(path, "cpu", weights_only=True)
    # A damaged file ends the unpickler, and the zip file around it, at any point of their own.
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is a checkpoint of another version; {_FROM_THE_START}")
    try:
        require_fields(found, {"settings": str, "step": int, "states": dict, "random": list[dict[str, Any]]})
        require_type(json.loads(found["settings"]), dict, "settings")
        if len(found) < len(_FIELDS):
            raise TypeError(f"it has {', '.join(found)}, and should have {', '.join(_FIELDS)}")
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None
    return found


def _damaged(path: Path, error: Exception) -> UserError:
    # PyTorch's messages go on for many lines about what a developer could do.
    reason = str(error).partition("\n")[0] or type(error).__name__
    return UserError(f"{path} is damaged ({reason}); {_FROM_THE_START}")


def _write(content: dict[str, Any], path: Path) -> None:
    """Writes a file of PyTorch; an `OSError` says that the disk is full."""
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # PyTorch's writer covers the error of the file with one of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _random_states() -> dict[str, Any]:
    """The states of PyTorch's generators; everything else that is random is a function of the step."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
