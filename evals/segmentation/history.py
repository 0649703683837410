"""What a training run has logged: lines of JSON, and curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_encoder.io.files import replacing
from sail_encoder.io.json_lines import LineLog

LOG, CURVES = "log.jsonl", "curves.png"


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's log; none where it has no log."""
    path = folder / LOG
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def open_history(folder: Path, step: int) -> LineLog:
    """Opens the log of a run that goes on at a step; what a killed run had logged beyond it is dropped."""
    log = LineLog(folder / LOG)
    log.keep(lambda line: line["step"] <= step)
    return log


def draw_curves(lines: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draws loss, learning rate and mIoU over the steps.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = [name for name in ("loss", "learning_rate", "mIoU") if any(name in line for line in lines)]
    figure = Figure((4 * len(names), 3), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 30 else None)
        axes.set(title=name.replace("_", " "), xlabel="step")
    with replacing(folder / CURVES) as unfinished:
        figure.savefig(unfinished)
