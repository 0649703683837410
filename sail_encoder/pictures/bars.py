"""Bars: a few numbers of several things side by side, a group of horizontal bars for each number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sail_encoder.pictures.canvas import DPI, Canvas, open_canvas, save_canvas, text_width
from sail_encoder.pictures.colors import INK, MARKS, MUTED, Color

# Sizes are in points.
_MARGIN, _GAP = 8.0, 14.0
_WORDS, _HEADING = 7.5, 8.5
_ROW, _BAR = 15.0, 9.0
_FULL = 78.0
_LEADING = 1.7

GROUND: Color = (236, 236, 236)


Bars = tuple[str, Sequence[float], float | None]
"""Name of a number, which stands above a group of bars; the number of each thing, of which what is below 0 is drawn as
nothing; and the value of a bar that fills its place, by default the largest of all.
"""


def draw_bars(names: Sequence[str], groups: Sequence[Bars], out: Path, dpi: float = DPI) -> None:
    """Draws groups of bars beside each other, a row for each thing.

    Args:
        names: Names of the things.
        groups: Their numbers.
        out: The file, whose name says in which format.
        dpi: Pixels per inch.

    Raises:
        StoreError: If the disk is full, or does not take the file.
    """
    scale = dpi / 72
    labels = max(text_width(name, _WORDS, dpi) for name in names)
    room = max(text_width(format_number(value), _WORDS, dpi) for _, values, _ in groups for value in values)
    step = round((_FULL + _GAP) * scale + room)
    left = round(_MARGIN * scale + labels + 6 * scale)
    top = round((_MARGIN + _HEADING * _LEADING) * scale)
    height = round(top + (len(names) * _ROW + _MARGIN) * scale)
    canvas = open_canvas(out, left + step * len(groups), height, dpi)
    for index, name in enumerate(names):
        canvas.text(name, left - 6 * scale, top + (index + 0.5) * _ROW * scale, _WORDS, INK, "right")
    for index, one in enumerate(groups):
        _draw_group(canvas, one, left + index * step, top, scale)
    save_canvas(canvas, out)


def _draw_group(canvas: Canvas, group: Bars, left: int, top: int, scale: float) -> None:
    """Draws one group: each bar on the ground of a full one, in the color of its thing, and its number after it."""
    title, values, full = group
    full = full or max(*values, 1e-12)
    canvas.text(title, left, top - _HEADING * _LEADING / 2 * scale, _HEADING, MUTED, "left")
    height, whole = round(_BAR * scale), round(_FULL * scale)
    for index, value in enumerate(values):
        middle = top + (index + 0.5) * _ROW * scale
        width = round(min(1.0, max(0.0, value / full)) * whole)
        for color, length in ((GROUND, whole), (MARKS[index % len(MARKS)], width)):
            if length:
                canvas.image(np.full((height, length, 3), color, np.uint8), left, round(middle - height / 2))
        canvas.text(format_number(value), left + whole + 3 * scale, middle, _WORDS, INK, "left")


def format_number(value: float) -> str:
    """A number with one decimal below 100, three from 0 to 1, and none above."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3f}"
