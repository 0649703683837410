"""Progress of a run on stderr, and its report."""

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sail_encoder.io.versions import versions
from sail_encoder.store.records import Record

if TYPE_CHECKING:
    import torch


class Progress:
    """Counts what is safe on disk; a bar with rate and remaining time where stderr is a terminal.

    Args:
        total: Images to do.
        label: What stands before the bar.

    Attributes:
        done: Images whose features are stored.
        failed: Images that were recorded as failures.
        tokens: Patches of the stored images.
    """

    def __init__(self, total: int, label: str) -> None:
        self.bar = tqdm(total=total, desc=label, unit="img", smoothing=0.05, disable=None, dynamic_ncols=True)
        self.started = time.perf_counter()
        self.done = self.failed = self.tokens = 0

    def add(self, records: Sequence[Record]) -> None:
        """Takes note of a pack."""
        self.failed += sum(record.error is not None for record in records)
        self.done += sum(record.error is None for record in records)
        self.tokens += sum(record.grid[0] * record.grid[1] for record in records if record.error is None)
        self.bar.update(len(records))
        self.bar.set_postfix(failed=self.failed, refresh=False)

    def report(self) -> dict[str, Any]:
        """Counts and rates of the run."""
        seconds = time.perf_counter() - self.started
        return {
            "images": self.done,
            "failed": self.failed,
            "patches": self.tokens,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.done / seconds, 3),
            "patches_per_second": round(self.tokens / seconds, 1),
        }

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()


def describe_machine(device: "torch.device") -> dict[str, Any]:
    """Peak memory of this process, and the versions of what it ran."""
    import torch

    memory = {"peak_memory_bytes": peak_memory()}
    if device.type == "cuda":
        memory["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return {**memory, "versions": versions()}


def peak_memory() -> int:
    """The most bytes that this process has had in memory."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage tells on Linux includes the process that has started this one.
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
