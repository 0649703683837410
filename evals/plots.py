"""Pictures of results; they need matplotlib, which is not installed with the package itself."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.features import slug
from evals.results import Result
from sail_encoder.io.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#222222", "#1b6ca8", "#b0b0b0"

SCORES = ("mIoU", "cIoU")
"""Scores by which a log follows a training."""

_COUNTED = 15
"""Classes up to which there is room for counts in a confusion matrix."""


def can_plot() -> bool:
    """Tells whether matplotlib is there; says what to do where it is not."""
    if importlib.util.find_spec("matplotlib"):
        return True
    print("no plots, since matplotlib is not installed: pip install matplotlib", file=sys.stderr)
    return False


def plot_results(out: Path, results: Sequence[Result]) -> list[Path]:
    """Draws, for the first seed of each probe, the hyper-parameter path and, for classes, the confusion matrix.

    Returns:
        The pictures.
    """
    drawn = []
    for result in (one for one in results if one.seed == 0):
        name = f"{slug(result.features)}-{result.probe}"
        if len(result.path) > 1:
            drawn.append(save(plot_path(result), out / "plots" / f"path-{name}.png"))
        if result.confusion:
            drawn.append(save(plot_confusion(result), out / "plots" / f"confusion-{name}.png"))
    return drawn


def plot_path(result: Result) -> "Figure":
    """Quality on the validation set by hyper-parameter."""
    figure, axes = _axes(f"{result.probe} on {result.features}")
    values, qualities = zip(*sorted(result.path), strict=True)
    axes.plot(values, qualities, color=ACCENT, marker="o", markersize=3)
    axes.axvline(result.chosen, color=MUTED, linestyle="--", label=f"chosen: {result.chosen:.3g}")
    axes.set(xscale="log", xlabel=result.parameter, ylabel=f"{result.primary} on validation")
    axes.legend(frameon=False)
    return figure


def plot_confusion(result: Result) -> "Figure":
    """Share of each true class that was taken for each class."""
    figure, axes = _axes(f"{result.probe} on {result.features}")
    shares = [[count / max(1, sum(row)) for count in row] for row in result.confusion]
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(result.classes) <= 30:
        ticks = range(len(result.classes))
        axes.set_xticks(ticks, result.classes, rotation=90)
        axes.set_yticks(ticks, result.classes)
    if len(result.classes) <= _COUNTED:
        for row, counts in enumerate(result.confusion):
            for column, count in enumerate(counts):
                color = "white" if shares[row][column] > 0.5 else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(picture, ax=axes, label="share of the true class")
    return figure


def plot_iou(title: str, scores: Mapping[str, float | None]) -> "Figure":
    """IoU of each class as a bar, the highest first, and their mean as a line.

    Args:
        title: What stands above.
        scores: IoU by class as a share; None where a class is neither present nor predicted.
    """
    rows = sorted(((iou, name) for name, iou in scores.items() if iou is not None), key=lambda row: row[0])
    figure, axes = _axes(title)
    figure.set_size_inches(5, 1.2 + 0.18 * max(5, len(rows)))
    axes.barh([name for _, name in rows], [100 * iou for iou, _ in rows], color=ACCENT, height=0.7)
    # In a column of their own, numbers never meet the line of the mean.
    for place, (iou, _) in enumerate(rows):
        axes.text(110, place, f"{100 * iou:.1f}", ha="right", va="center", fontsize=7, color=INK)
    if rows:
        mean = 100 * sum(iou for iou, _ in rows) / len(rows)
        axes.axvline(mean, color=INK, linestyle="--", linewidth=0.8)
        above = {"xycoords": ("data", "axes fraction"), "xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate(f"mIoU {mean:.1f}", (mean, 1), ha="center", fontsize=8, **above)
    axes.set(xlabel="IoU in percent", xlim=(0, 110), xticks=range(0, 101, 20))
    axes.set_title(title, fontsize=10, color=INK, pad=16)
    axes.tick_params("y", labelsize=7)
    return figure


def plot_curves(lines: Sequence[Mapping[str, Any]]) -> "Figure":
    """Loss, learning rate and scores of a training over its steps.

    Args:
        lines: What its log says of steps, each with some of these; scores are shares and drawn as percent.
    """
    from matplotlib.figure import Figure

    # A loss that is not finite stands in a log as null.
    points = {
        name: [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        for name in ("loss", "learning_rate", *SCORES)
    }
    names = [name for name, found in points.items() if found]
    figure = Figure((3.6 * len(names), 2.8), dpi=150, layout="constrained")
    last = max(line["step"] for line in lines)
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        factor = 100 if name in SCORES else 1
        steps, values = zip(*((step, factor * value) for step, value in points[name]), strict=True)
        axes.plot(steps, values, color=ACCENT, marker="o" if len(steps) < 30 else None, markersize=3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(title=name.replace("_", " ") + (" in percent" if name in SCORES else ""), xlabel="step")
        axes.set_xlim(0, 1.06 * last)
        if name in SCORES:
            axes.annotate(
                f"{values[-1]:.1f}", (steps[-1], values[-1]), xytext=(0, 5), textcoords="offset points", ha="right"
            )
        if len(steps) == 1:
            axes.set_ylim(0, 100 if name in SCORES else 2 * abs(values[0]) or 1)
    return figure


def plot_layers(title: str, series: Mapping[str, Sequence[float]], ylabel: str, log: bool = False) -> "Figure":
    """Lines by layer.

    Args:
        title: What stands above.
        series: For each line its values, layer 0 first.
        ylabel: What the values are.
        log: Whether they are on a logarithmic scale.
    """
    figure, axes = _axes(title)
    for name, values in series.items():
        axes.plot(range(len(values)), values, marker="o", markersize=3, label=name)
    axes.set(xlabel="layer", ylabel=ylabel, yscale="log" if log else "linear")
    axes.legend(frameon=False)
    return figure


def save(figure: "Figure", path: Path) -> Path:
    """Writes a picture."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    return path


def _axes(title: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
