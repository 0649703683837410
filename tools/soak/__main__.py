"""Long test of what survives trouble: commands are killed, stopped, starved of disk, damaged and run at once.

    python -m tools.soak --minutes 20
    python -m tools.soak --seed 3 --only 41

Each trial ends with the same command once more, undisturbed, and compares what is left with an uninterrupted run: the
same features, label maps, head or answers, the same files, the same exit status. All that is random follows from the
seed, but for when the system lets a process run. A trial with a finding keeps its folder; the exit status is then 1.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from tools.soak.troubles import TROUBLES, FindingError, Running, Trial
from tools.soak.works import HEAD, OUT, WORKS, Left, write_inputs


class Soak:
    """Trials by number, and what uninterrupted runs have left.

    Args:
        folder: An empty folder for all of it.
        seed: From which each trial derives all that is random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.inputs = folder / "inputs"
        write_inputs(self.inputs)
        self.ended: dict[str, tuple[int, float, Left, list[str]]] = {}
        for name in sorted(WORKS, key=lambda name: name == "segment predict"):
            self.ended[name] = self._run_undisturbed(name)

    def _run_undisturbed(self, name: str) -> tuple[int, float, Left, list[str]]:
        """Exit status, seconds, and what is left, of a work without trouble."""
        work, folder = WORKS[name], self._prepare(name)
        started = time.perf_counter()
        status = Running(work.arguments, folder).wait([0, 1])
        left = status, time.perf_counter() - started, work.read(folder), _files(folder)
        if name == "segment train":
            shutil.copytree(folder / OUT, self.inputs / HEAD)
        shutil.rmtree(folder)
        return left

    def _prepare(self, name: str) -> Path:
        """A folder with a copy of the inputs."""
        folder = self.folder / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.inputs, folder)
        return folder

    def run(self, number: int) -> tuple[str, str, str | None]:
        """Runs one trial.

        Returns:
            The trouble, a line that says what was done, and the finding if there is one.
        """
        rng = random.Random(f"{self.seed} {number}")
        trouble = list(TROUBLES)[number % len(TROUBLES)]
        name = rng.choice(list(WORKS))
        status, seconds, _, _ = self.ended[name]
        folder = self._prepare(f"trial-{number}")
        trial = Trial(WORKS[name], folder, seconds, status, rng)
        done = ""
        try:
            done = TROUBLES[trouble](trial)
            trial.start().wait([status])
            # A vector that comes later than its neighbours stands in a shard of its own.
            is_late = (trouble, name) == ("damaged input", "extract pooled")
            self._compare(name, folder, files_too=trouble not in ("damaged state", "at once") and not is_late)
        except FindingError as finding:
            return trouble, f"{name:<16} {done}", f"{finding}; see {folder}"
        shutil.rmtree(folder)
        return trouble, f"{name:<16} {done}", None

    def _compare(self, name: str, folder: Path, files_too: bool) -> None:
        """Compares what is left with the uninterrupted run.

        Raises:
            FindingError: If it differs.
        """
        _, _, expected, files = self.ended[name]
        found = WORKS[name].read(folder)
        wrong = sorted(key for key in {**expected, **found} if expected.get(key) != found.get(key))
        if wrong:
            raise FindingError(f"{len(wrong)} of {len(expected)} results differ, such as {wrong[0]}")
        other = sorted(set(_files(folder)) ^ set(files))
        if files_too and other:
            raise FindingError(f"{len(other)} files are missing or left over, such as {other[0]}")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (folder / OUT).rglob("*") if path.is_file())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs trials until the time is over; returns 1 if there is a finding."""
    parser = argparse.ArgumentParser("python -m tools.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="how long to begin trials")
    parser.add_argument("--trials", type=int, default=None, help="how many trials at most")
    parser.add_argument("--seed", type=int, default=0, help="from which all that is random follows")
    parser.add_argument("--only", type=int, default=None, help="number of one trial to run again")
    parser.add_argument("--out", type=Path, default=None, help="an empty folder; by default a temporary one")
    asked = parser.parse_args(argv)
    if asked.out is not None and asked.out.exists() and any(asked.out.iterdir()):
        parser.error(f"--out {asked.out} is not empty")
    # Before the processes are started from which all others are.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="soak-")) if asked.out is None else asked.out.absolute()
    soak = Soak(folder, asked.seed)
    numbers = count() if asked.only is None else iter([asked.only])
    counted, findings = _run_all(soak, numbers, time.monotonic() + 60 * asked.minutes, asked.trials)
    if not findings and asked.out is None:
        shutil.rmtree(folder)
    total = ", ".join(f"{number} {name}" for name, number in counted.items())
    print(f"{counted.total()} trials with seed {asked.seed} ({total}): {findings or 'no'} findings")
    return int(findings > 0)


def _run_all(soak: Soak, numbers: Iterable[int], deadline: float, most: int | None) -> tuple[Counter[str], int]:
    """How many trials of each trouble were run, and how many had a finding; a line is printed for each."""
    counted: Counter[str] = Counter()
    findings = 0
    for number in numbers:
        if time.monotonic() > deadline or counted.total() == most:
            break
        started = time.monotonic()
        trouble, done, finding = soak.run(number)
        counted[trouble] += 1
        findings += finding is not None
        ending = "ok" if finding is None else f"FINDING: {finding}"
        print(f"{number:5} {trouble:<14} {done} | {time.monotonic() - started:.1f} s | {ending}", flush=True)
    return counted, findings


if __name__ == "__main__":
    sys.exit(main())
