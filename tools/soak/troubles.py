"""Troubles that come over a command: kills, signals, full disks, damaged files, and others at the same work."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.soak.works import OUT, Work

LONGEST = 180.0
"""Seconds after which a command counts as hanging."""

_PRELOADED = [
    *("sail_encoder.commands.extract", "sail_encoder.extraction.run", "sail_encoder.backbones.raw", "pyarrow.parquet"),
    *("evals.commands.segment_train", "evals.commands.segment_predict", "evals.segmentation.training"),
    *("evals.segmentation.run_folders", "sail_encoder.commands.chat", "sail_encoder.chat.batch"),
    "sail_encoder.models.sail.modeling_sail",
]


class FindingError(Exception):
    """Something that should not have happened; its text says what."""


class Running:
    """A command in a process that has imported everything already, so that troubles fall into its work.

    Args:
        arguments: Arguments of `sail`.
        folder: Where it runs, and where what it prints is kept.
        file_limit: Bytes that a file may have at most, as on a disk that is full.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, file_limit: int | None = None) -> None:
        self.log = folder / f"log{len(list(folder.glob('log*.txt'))):02d}.txt"
        self.process = _server().Process(target=_call, args=(list(arguments), folder, self.log, file_limit))
        self.process.start()
        deadline = time.monotonic() + LONGEST
        while not self.log.exists() and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    def send(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def wait(self, allowed: Sequence[int]) -> int:
        """Its exit status, below zero where a signal has ended it.

        Raises:
            FindingError: If it hangs, ends with another status than is allowed, or in more than one line.
        """
        self.process.join(LONGEST)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            raise FindingError(f"it has not ended within {LONGEST:.0f} s; {self.log.name}")
        said = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        last = said.strip().splitlines()[-1:] or ["nothing"]
        if "Traceback" in said or "please report" in said:
            raise FindingError(f"it ended in an unexpected error, see {self.log.name}: {last[0]}")
        if status not in allowed:
            others = ", ".join(map(str, allowed))
            raise FindingError(f"status {status}, allowed is {others}; {self.log.name}: {last[0]}")
        if status == 2 and not last[0].startswith("sail: "):
            raise FindingError(f"status 2 without a line that says why; {self.log.name}: {last[0]}")
        return status


def _server() -> "multiprocessing.context.ForkServerContext":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _call(arguments: list[str], folder: Path, log: Path, file_limit: int | None) -> None:
    from sail_cli import main

    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if file_limit is not None:
        # Python itself leaves half a .pyc where the rest does not fit, and cannot import that later.
        sys.dont_write_bytecode = True
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    try:
        status = main(arguments)
    except KeyboardInterrupt:
        status = 130
    # What comes from here on concerns no work any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


@dataclass
class Trial:
    """One work in a folder of its own, which is to end as the uninterrupted one did.

    Attributes:
        work: What is done.
        folder: Where.
        seconds: How long it takes without trouble.
        status: How it ends then.
        rng: Decides everything that is random.
    """

    work: Work
    folder: Path
    seconds: float
    status: int
    rng: random.Random

    def start(self, *options: str, file_limit: int | None = None) -> Running:
        """Begins the work, or goes on with it."""
        return Running([*self.work.arguments, *options], self.folder, file_limit)

    def pause(self, most: float = 1.0) -> None:
        """Waits for a random part of the time that the work takes."""
        time.sleep(self.rng.uniform(0, most * self.seconds))


def kill(trial: Trial) -> str:
    """SIGKILL at random moments, one to four times."""
    times = trial.rng.randint(1, 4)
    for _ in range(times):
        running = trial.start()
        trial.pause()
        running.send(signal.SIGKILL)
        running.wait([-signal.SIGKILL, trial.status])
    return f"killed {times} times"


def stop(trial: Trial) -> str:
    """SIGINT or SIGTERM at random moments, some of them twice, one to three times."""
    names = []
    for _ in range(trial.rng.randint(1, 3)):
        number = trial.rng.choice([signal.SIGINT, signal.SIGTERM])
        running = trial.start()
        trial.pause()
        for _ in range(trial.rng.choice([1, 1, 2])):
            running.send(number)
        # SIGTERM before a command has begun to handle it ends the process as it ends any other.
        running.wait([128 + number, -number, trial.status])
        names.append(number.name)
    return f"stopped by {', '.join(names)}"


def fill_disk(trial: Trial) -> str:
    """A bound on the size of files, so that writing fails in the middle."""
    limit = round(2 ** trial.rng.uniform(10, 16))
    trial.start(file_limit=limit).wait([trial.status, 0, 1, 2])
    return f"no file above {limit:,} bytes"


def damage_state(trial: Trial) -> str:
    """A file of its own that is damaged after a kill: refused, or repaired; put back if it was refused."""
    running = trial.start()
    trial.pause(1.5)
    running.send(signal.SIGKILL)
    running.wait([-signal.SIGKILL, trial.status])
    found = [(path, how) for name, how in trial.work.state.items() for path in (trial.folder / OUT).glob(name)]
    if not found:
        return "killed before there was a file to damage"
    path, kinds = trial.rng.choice(sorted(found))
    how, before = trial.rng.choice(kinds), path.read_bytes()
    path.write_bytes(_damaged(before, how, trial.rng))
    if trial.start().wait([trial.status, 2]) == 2:
        path.write_bytes(before)
    return f"{path.relative_to(trial.folder)}: {how}"


def damage_input(trial: Trial) -> str:
    """An image that is damaged before the first run and put back after it."""
    path = trial.rng.choice(sorted((trial.folder / trial.work.images).iterdir()))
    how, kept = trial.rng.choice(["noise", "half", "empty"]), trial.folder / "kept"
    shutil.copy2(path, kept)
    path.write_bytes(_damaged(path.read_bytes(), how, trial.rng))
    trial.start().wait([0, 1, 2])
    os.replace(kept, path)
    return f"{path.relative_to(trial.folder)}: {how}"


def work_at_once(trial: Trial) -> str:
    """Shares that run at the same time, of which some are killed and begun again; or the same command twice."""
    if not trial.work.in_shares:
        both = [trial.start(), trial.start()]
        statuses = [running.wait([trial.status, 0, 1, 2]) for running in both]
        return f"two at once, statuses {statuses[0]} and {statuses[1]}"
    count = trial.rng.randint(2, 3)
    shares = [f"--shard={index}/{count}" for index in range(count)]
    killed = trial.rng.sample(shares, trial.rng.randint(0, count))
    running = {share: trial.start(share) for share in shares}
    for share in killed:
        trial.pause(0.5)
        running[share].send(signal.SIGKILL)
        running[share].wait([-signal.SIGKILL, 0, 1])
        running[share] = trial.start(share)
    for one in running.values():
        one.wait([0, 1])
    return f"{count} shares, {len(killed)} of them killed"


def _damaged(content: bytes, how: str, rng: random.Random) -> bytes:
    if how == "noise":
        return rng.randbytes(min(64, len(content))) + content[64:]
    return content[: len(content) // 2] if how == "half" else b""


TROUBLES: dict[str, Callable[[Trial], str]] = {
    "kill": kill,
    "stop": stop,
    "full disk": fill_disk,
    "damaged state": damage_state,
    "damaged input": damage_input,
    "at once": work_at_once,
}
