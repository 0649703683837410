"""Pictures of results; they need matplotlib, which is not installed with the package itself."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.features import slug
from evals.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#222222", "#1b6ca8", "#b0b0b0"

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
    bars = axes.barh([name for _, name in rows], [100 * iou for iou, _ in rows], color=ACCENT, height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7, color=INK)
    mean = sum(iou for iou, _ in rows) / max(1, len(rows))
    axes.axvline(100 * mean, color=INK, linestyle="--", linewidth=0.8, label=f"mIoU {100 * mean:.1f}")
    axes.set(xlabel="IoU in percent", xlim=(0, 108), xticks=range(0, 101, 20))
    axes.tick_params("y", labelsize=7)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _axes(title: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
