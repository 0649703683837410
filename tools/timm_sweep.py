"""Tries every architecture of timm as a backbone: which work, which are refused, and why.

    python -m tools.timm_sweep --out runs/timm.jsonl
    python -m tools.timm_sweep --out runs/timm.jsonl --match "resnet*,vit_tiny*"
    python -m tools.timm_sweep --out runs/timm.jsonl --rows docs/timm.csv

Each is described on the meta device, and where it has less than 400 million parameters built with random weights and
run forward once, at the smallest size that it accepts. Each has a process and a time of its own, and a line in the file
when it is done; given again, the command goes on with those that have none.
"""

import argparse
import fnmatch
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evals.report import write_csv
from sail_encoder.io.errors import UserError, in_one_line
from sail_encoder.io.json_lines import LineLog

SECONDS = 120
PARAMETERS = 400_000_000
SMALL_SIDES = (1, 2, 3, 4, 7, 8)
"""Sides in patches that are tried before a model's own size."""


@dataclass(frozen=True)
class Trial:
    """One architecture, and what came of it.

    Attributes:
        name: As timm lists it.
        status: `works` (it ran forward), `described` (too large to run here), `refused` (one clear line), `error` (an
            exception that is none of ours), `timeout` or `killed`.
        reason: The message, where there is one.
        parameters: Parameters that features need.
        layers: Blocks or stages.
        patches: Sides of the patches, in pixels, one where all layers have the same.
        channels: Channels, likewise.
        size: Smallest size tried at which it ran, as height x width.
        seconds: Time that it took.
    """

    name: str
    status: str
    reason: str = ""
    parameters: int = 0
    layers: int = 0
    patches: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    size: str = ""
    seconds: float = 0.0


def try_architecture(name: str) -> Trial:
    """Describes one architecture, and runs it unless it is too large."""
    from sail_encoder.backbones.registry import describe

    known: dict[str, Any] = {}
    try:
        spec = describe(f"timm/{name}")
        stages = spec.stages or ((spec.patch_size, spec.embed_dim),)
        patches, channels = zip(*stages, strict=True)
        known = {"parameters": spec.parameters(), "layers": spec.num_layers, "patches": patches, "channels": channels}
        if spec.parameters() >= PARAMETERS:
            return Trial(name, "described", **known)
        return Trial(name, "works", size=run_smallest(name), **known)
    except UserError as error:
        return Trial(name, "refused", in_one_line(error), **known)
    except Exception as error:
        return Trial(name, "error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", **known)


def run_smallest(name: str) -> str:
    """Runs an architecture at rising sizes until it accepts one, at last its own, and returns that.

    Raises:
        UserError: If it refuses its own.
    """
    import numpy as np
    import torch

    from sail_encoder.backbones.registry import load_backbone

    torch.set_num_threads(1)
    backbone = load_backbone(f"timm/{name}", "cpu", "float32", pretrained=False)
    own = str(backbone.spec.resize)
    sides = [f"{count * backbone.patch_size}" for count in SMALL_SIDES] if getattr(backbone, "any_size", False) else []
    image = np.zeros((64, 96, 3), np.uint8)
    for size in (*sides, own):
        try:
            (features,) = backbone.encode([image], resize=size)
        except UserError:
            if size == own:
                raise
            continue
        if not features.grid.isfinite().all():
            raise UserError(f"features of {features.resized_size} are not finite")
        return "x".join(map(str, features.resized_size))
    raise AssertionError("its own size is among those that are tried")


def run_apart(name: str, seconds: float) -> Trial:
    """Tries one architecture in a process of its own, which is ended where it takes longer than that."""
    # The server has imported timm once, so that a process begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "sail_encoder.backbones.timm"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(name, sender), daemon=True)
    started = time.perf_counter()
    process.start()
    sender.close()
    try:
        trial = receiver.recv() if receiver.poll(seconds) else Trial(name, "timeout", f"more than {seconds:g} seconds")
    except EOFError:
        process.join()
        trial = Trial(name, "killed", f"exit status {process.exitcode}")
    process.kill()
    process.join()
    return Trial(**{**asdict(trial), "seconds": round(time.perf_counter() - started, 1)})


def _report(name: str, sender: Connection) -> None:
    # What libraries print of each model would bury the progress.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
    sender.send(try_architecture(name))


def sweep(out: Path, names: Sequence[str], seconds: float = SECONDS) -> list[Trial]:
    """Tries what the file does not have yet, and returns all of these architectures that it has then."""
    out.parent.mkdir(parents=True, exist_ok=True)
    log = LineLog(out)
    done = {line["name"]: Trial(**line) for line in log.read()}
    for name in tqdm([name for name in names if name not in done], unit="model", disable=None):
        done[name] = run_apart(name, seconds)
        log.append(asdict(done[name]))
    return [done[name] for name in names]


def write_report(trials: Sequence[Trial], modules: Mapping[str, str]) -> Iterator[str]:
    """Lines of Markdown: how many architectures of each module ended how, and why those that did not work did not.

    Args:
        trials: What came of each.
        modules: Module of timm of each architecture.
    """
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        counts.setdefault(modules[trial.name], Counter())[trial.status] += 1
    statuses = list(dict.fromkeys(trial.status for trial in sorted(trials, key=lambda trial: trial.status != "works")))
    total: Counter[str] = sum(counts.values(), Counter())
    yield f"| module of timm | {' | '.join(statuses)} |"
    yield f"|---|{'---:|' * len(statuses)}"
    for module, count in [("all", total), *sorted(counts.items())]:
        yield f"| {module} | {' | '.join(f'{count[status]:,}' if count[status] else '' for status in statuses)} |"
    reasons: dict[str, list[str]] = {}
    for trial in trials:
        if trial.reason:
            reasons.setdefault(trial.reason.replace(trial.name, "NAME").replace("|", "\\|"), []).append(trial.name)
    if reasons:
        yield from ("", "| why not | architectures |", "|---|---|")
    for reason, names in sorted(reasons.items()):
        yield f"| {reason} | {', '.join(names)} |"


def write_rows(trials: Sequence[Trial], path: Path) -> None:
    """Writes a CSV file with a line for each architecture."""
    rows = [asdict(trial) for trial in sorted(trials, key=lambda trial: trial.name)]
    several = ("patches", "channels")
    named = [{**row, **{name: " ".join(map(str, row[name])) for name in several}} for row in rows]
    columns = [field for field in rows[0] if field != "seconds"]
    write_csv(path, [columns, *([row[column] for column in columns] for row in named)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep, and prints its tables; 1 where an architecture ends in an error of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one an architecture; the run goes on")
    parser.add_argument("--match", default="*", help="patterns of names, separated by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each architecture")
    parser.add_argument("--rows", type=Path, help="CSV file to write, with a line for each architecture")
    options = parser.parse_args(arguments)
    import timm

    patterns = options.match.split(",")
    names = [name for name in timm.list_models() if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        parser.error(f"--match {options.match} is no architecture of timm; use patterns of names in timm.list_models()")
    trials = sweep(options.out, names, options.seconds)
    modules = {name: module for module in timm.list_modules() for name in timm.list_models(module=module)}
    print(*write_report(trials, modules), sep="\n")
    if options.rows:
        write_rows(trials, options.rows)
    return int(any(trial.status in ("error", "killed") for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
