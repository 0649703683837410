"""One process a device, each with its share of the images."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_encoder.interrupt import Interrupt
from sail_encoder.store.store import Shard, remove_run

if TYPE_CHECKING:
    import torch


def extract_on_each(devices: "Sequence[torch.device]", part: Shard, arguments: dict[str, Any]) -> int:
    """Runs `sail extract` in a process of its own on each device.

    Args:
        devices: Where to run.
        part: Which part of the images all of them do together.
        arguments: The arguments of `extract`.

    Returns:
        The highest exit status.
    """
    if arguments["overwrite"]:
        remove_run(Path(arguments["out"]))
    count = part.count * len(devices)
    processes = []
    for position, device in enumerate(devices):
        share = Shard(part.index + part.count * position, count)
        changes = {"devices": str(device), "shard": str(share), "overwrite": False}
        command = [sys.executable, "-m", "sail_cli", "extract", *_as_flags({**arguments, **changes})]
        processes.append(subprocess.Popen(command))

    def stop() -> None:
        for process in processes:
            # A terminal has sent the signal to the whole group already; a second one would cut the work short.
            with suppress(ProcessLookupError):
                if not sys.stdin.isatty():
                    process.send_signal(signal.SIGTERM)

    with Interrupt(stop):
        return max(process.wait() for process in processes)


def _as_flags(arguments: dict[str, Any]) -> list[str]:
    flags = [f"--{name}={value}" for name, value in arguments.items() if name != "source" and value is not None]
    return [*arguments["source"], *flags]
