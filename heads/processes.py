"""The processes of a run that torchrun or accelerate has started."""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """The processes of a run; leaving the context parts from the others, also when something went wrong.

    Attributes:
        rank: Number of this one.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """Joins the others, if any."""
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            # What is gathered goes from CPU to CPU, so that no device is waited for.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), count)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, wrapped so that several processes average its gradients and share the statistics of its norms."""
        if self.count == 1:
            return module
        if next(module.parameters()).is_cuda:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return DistributedDataParallel(module)

    def gather(self, part: Any) -> list[Any]:
        """Values of all processes, in order of rank."""
        parts = [part] * self.count
        if self.count > 1:
            dist.all_gather_object(parts, part)
        return parts

    def device(self, device: str) -> str:
        """The device of this process."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if self.count > 1 and torch.cuda.is_available() else device
