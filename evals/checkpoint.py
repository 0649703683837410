"""What an unfinished training has reached, in a file that only the same training goes on from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evals.processes import Processes
from heads.training import BankTraining
from sail_encoder.io.errors import StoreError


class Checkpoint:
    """The file of one training, which the first process writes and all of them read.

    Args:
        path: The file.
        made_of: All that decides the training, by name; as JSON.
        processes: Who trains.
    """

    def __init__(self, path: Path, made_of: Mapping[str, Any], processes: Processes) -> None:
        self.path = path
        self.made_of = json.dumps(made_of)
        self.processes = processes

    def restore(self, training: BankTraining) -> int:
        """Goes on from the file, if there is one; returns how many steps are done.

        Raises:
            StoreError: If it is of another training, or processes find different files.
        """
        self._compare()
        done = training.restore(self.path, self.made_of)
        found = self.processes.gather(done)
        if len(set(found)) > 1:
            steps = ", ".join(map(str, found))
            raise StoreError(f"processes find different steps in {self.path}: {steps}; let them share the folder --out")
        return done

    def _compare(self) -> None:
        if not self.path.exists():
            return
        # Mapped, so that of the weights nothing is read yet.
        stored = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)["made_of"]
        earlier, now = json.loads(stored), json.loads(self.made_of)
        changes = [f"{name} was {earlier.get(name)}, now {now[name]}" for name in now if earlier.get(name) != now[name]]
        if changes:
            difference = "; ".join(changes)
            raise StoreError(
                f"{self.path} is of an unfinished training with other settings: {difference}; use another --out, or "
                "delete the file"
            )

    def save(self, training: BankTraining, step: int) -> None:
        """Keeps the state after a step; only the first process writes."""
        if self.processes.rank == 0:
            training.save(self.path, self.made_of, step)

    def remove(self) -> None:
        """Deletes the file of a training whose result is kept."""
        if self.processes.rank == 0:
            self.path.unlink(missing_ok=True)
