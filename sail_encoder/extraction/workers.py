"""One process per device, each with its share of the images."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_encoder.images.sources import ImageFile
from sail_encoder.io.files import append_all
from sail_encoder.io.signals import Interrupt
from sail_encoder.store.index import list_undone
from sail_encoder.store.shares import Share

if TYPE_CHECKING:
    import torch

CRASHED = 70
"""Exit status of a worker that ended in a traceback; Python's own, 1, is that of a run with failures recorded."""

_NOT_DONE = 2
"""Exit status of a run that goes on when its command is given again."""


@dataclass(eq=False)
class Worker:
    """A process that does one share of the images on one device."""

    share: Share
    device: str
    process: "subprocess.Popen[bytes]"
    reported: bool = False

    def tell(self, number: int) -> None:
        """Passes a signal on, once: a second one would cut the work short."""
        if not self.reported:
            self.reported = True
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def conclude(self) -> int:
        """The exit status once the process has ended, and a line of what has not been printed yet."""
        code, who = self.process.wait(), f"shard {self.share} on {self.device}"
        if code < 0:
            print(f"{who} was killed by signal {-code} ({_name(-code)}); the same command goes on", file=sys.stderr)
            return 128 - code
        if code == CRASHED:
            print(f"{who} has crashed; the same command goes on", file=sys.stderr)
            return _NOT_DONE
        return code


def extract_on_each(
    devices: "Sequence[torch.device]", part: Share, request: dict[str, Any], images: Sequence[ImageFile], folder: Path
) -> int:
    """Runs `sail extract` in a process of its own on each device; they end with this one.

    Args:
        devices: Where to run.
        part: Which part of the images all of them do together.
        request: The arguments of `extract`, without device and shard.
        images: The images of that part.
        folder: Where the features go.

    Returns:
        The highest exit status.
    """
    workers: list[Worker] = []

    def pass_on() -> None:
        # A terminal sends Ctrl-C to the whole group itself.
        if interrupt.number != signal.SIGINT or not sys.stdin.isatty():
            for worker in workers:
                worker.tell(interrupt.number)

    interrupt = Interrupt(pass_on)
    with ExitStack() as processes, interrupt:
        for share, device in zip(part.split(len(devices)), devices, strict=True):
            if not interrupt.number:
                workers.append(start_worker(request, str(device), share))
                processes.enter_context(workers[-1].process)
        if interrupt.number:
            pass_on()
        status = max((worker.conclude() for worker in workers), default=0)
    return max(status, interrupt.status) if interrupt.number else check_all_done(status, images, folder)


def start_worker(request: dict[str, Any], device: str, share: Share) -> Worker:
    """Starts a process that runs `extract` with these arguments on a device, for a share of the images."""
    command = [sys.executable, "-m", "sail_encoder.commands.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    line = json.dumps({**request, "devices": device, "shard": str(share)})
    # A process that has ended already tells why by its exit status.
    with suppress(BrokenPipeError):
        append_all(process.stdin.fileno(), line.encode() + b"\n")
    return Worker(share, device, process)


def check_all_done(status: int, images: Sequence[ImageFile], folder: Path) -> int:
    """Holds the index against the list of images, so that no run that lacks some is called done."""
    undone = len(list_undone(folder, images))
    if undone:
        print(f"{undone:,} of {len(images):,} images are not done; the same command goes on", file=sys.stderr)
    return max(status, _NOT_DONE) if undone else status


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
