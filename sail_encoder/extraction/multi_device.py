"""One process a device, each with its share of the images."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from sail_encoder.interrupt import Interrupt
from sail_encoder.store.store import Shard

if TYPE_CHECKING:
    import torch


def extract_on_each(devices: "Sequence[torch.device]", part: Shard, words: Sequence[str]) -> int:
    """Runs `sail extract` in a process of its own on each device.

    Args:
        devices: Where to run.
        part: Which part of the images all of them do together.
        words: The command line of `sail extract` behind its name, without device and shard.

    Returns:
        The highest exit status.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on() -> None:
        # A terminal sends Ctrl-C to the whole group itself; a second one would cut the work short.
        if interrupt.number == signal.SIGINT and sys.stdin.isatty():
            return
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(interrupt.number)

    interrupt = Interrupt(pass_on)
    with interrupt:
        for position, device in enumerate(devices):
            if not interrupt.number:
                share = Shard(part.index + part.count * position, part.count * len(devices))
                processes.append(_start(words, device, share))
        statuses = [_exit_status(process) for process in processes]
    return max(statuses, default=interrupt.status)


def _start(words: Sequence[str], device: "torch.device", share: Shard) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "sail_cli", "extract", *words, f"--devices={device}", f"--shard={share}"]
    return subprocess.Popen(command)


def _exit_status(process: "subprocess.Popen[bytes]") -> int:
    """Waits for a process; one that a signal has ended at once counts as a shell counts it."""
    code = process.wait()
    return code if code >= 0 else 128 - code
