"""Sheets: pictures in rows and columns with titles, a color bar, a legend, frames, and lines from one to another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sail_encoder.images.decoding import Array
from sail_encoder.pictures.canvas import Bitmap, Canvas, open_canvas, save_canvas, text_width
from sail_encoder.pictures.colors import INK, MUTED, PAPER, Color, colorize

# Sizes are in points.
_MARGIN, _GAP = 8.0, 6.0
_HEADING, _TITLE, _NOTE = 8.5, 7.5, 7.0
_LEADING = 1.35
_BAR_WIDTH, _BAR_HEIGHT, _TICKS = 9.0, 150.0, 5
_SWATCH = 8.0
_OUTLINE, _CASING = 1.4, 0.5


Frame = tuple[tuple[int, int, int, int], Color]
"""Outline of a part of a panel: (left, top, right, bottom) in its pixels, right and bottom exclusive, and color."""

Link = tuple[tuple[float, float], tuple[float, float], Color]
"""Line from (x, y) in pixels of the first panel of a row to (x, y) in those of the second, and its color."""


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet.

    Attributes:
        pixels: uint8 [height, width, 3], drawn one to one.
        title: A line above it.
        note: A line below it.
        frames: Outlines in it.
    """

    pixels: Array
    title: str = ""
    note: str = ""
    frames: Sequence[Frame] = ()


@dataclass(frozen=True)
class Scale:
    """Values that the colors of the ramp stand for.

    Attributes:
        low: Value of the darkest color.
        high: Value of the brightest.
        name: Name of the quantity.
    """

    low: float
    high: float
    name: str

    def format(self, value: float) -> str:
        """A value with as many decimals, two to five, as tell it from its neighbors on the bar."""
        step = (self.high - self.low) / (_TICKS - 1)
        decimals = 2 if step <= 0 else min(5, max(2, math.ceil(-math.log10(step))))
        return f"{value:.{decimals}f}"


@dataclass(frozen=True)
class Sheet:
    """Panels in rows and columns.

    Attributes:
        rows: Panels from left to right, None for an empty place.
        title: A line above everything, or where it fits above the first column, which has no heading then.
        headings: Lines above each column.
        scale: What the ramp's colors stand for, drawn as a bar at the right.
        legend: Names and colors below the panels.
        links: Lines between the first two panels of the first row.
    """

    rows: Sequence[Sequence[Panel | None]]
    title: str = ""
    headings: Sequence[Sequence[str]] = ()
    scale: Scale | None = None
    legend: Sequence[tuple[str, Color]] = ()
    links: Sequence[Link] = ()


def draw_sheet(sheet: Sheet, out: Path, dpi: float) -> None:
    """Writes a sheet to a file, whose name says in which format.

    Raises:
        StoreError: If the disk is full, or does not take the file.
    """
    layout = _Layout(sheet, dpi)
    canvas = open_canvas(out, layout.width, layout.height, dpi)
    layout.draw(canvas)
    save_canvas(canvas, out)


def render_sheet(sheet: Sheet, dpi: float) -> Array:
    """Draws a sheet as pixels, uint8 [height, width, 3]."""
    layout = _Layout(sheet, dpi)
    canvas = Bitmap(layout.width, layout.height, dpi)
    layout.draw(canvas)
    return np.asarray(canvas.page)


class _Layout:
    """Places of everything on a sheet, in pixels."""

    def __init__(self, sheet: Sheet, dpi: float) -> None:
        self.sheet, self.dpi = sheet, dpi
        self.gap, self.margin = self._pixels(_GAP), self._pixels(_MARGIN)
        columns = max(len(row) for row in sheet.rows)
        cells = [[row[index] if index < len(row) else None for row in sheet.rows] for index in range(columns)]
        self.widths = [max((cell.pixels.shape[1] for cell in column if cell), default=0) for column in cells]
        self.lefts = np.cumsum([self.margin, *(width + self.gap for width in self.widths)]).tolist()
        # A short title stands beside the headings, above the first column.
        beside = sheet.headings and text_width(sheet.title, _HEADING, dpi) <= self.widths[0]
        self.title_lines = int(sheet.title != "" and not beside)
        self.tops, bottom = self._place_rows()
        right = self.lefts[-1] - self.gap
        self.bar_left = right + 2 * self.gap
        if sheet.scale:
            right = self.bar_left + self._bar_room(sheet.scale)
            bottom = max(bottom, self.tops[0] + self._pixels(_BAR_HEIGHT))
        self.swatches, bottom = self._place_legend(right, bottom)
        self.width, self.height = right + self.margin, bottom + self.margin

    def _pixels(self, points: float) -> int:
        return round(points * self.dpi / 72)

    def _line(self, points: float) -> int:
        """Height of a line of text."""
        return self._pixels(points * _LEADING)

    def _place_rows(self) -> tuple[list[int], int]:
        """The top of the panels of each row, and where the last ends."""
        lines = max(map(len, self.sheet.headings), default=0) + self.title_lines
        y = self.margin + lines * self._line(_HEADING) + (self._pixels(2) if lines else 0)
        tops = []
        for row in self.sheet.rows:
            y += self._line(_TITLE) * any(cell and cell.title for cell in row)
            tops.append(y)
            y += max(cell.pixels.shape[0] for cell in row if cell)
            y += self._line(_NOTE) * any(cell and cell.note for cell in row) + self.gap
        return tops, y - self.gap

    def _bar_room(self, scale: Scale) -> int:
        """Width of the color bar with what is written at it."""
        ticks = max(text_width(scale.format(value), _NOTE, self.dpi) for value in (scale.low, scale.high))
        name = max(text_width(line, _NOTE, self.dpi) for line in scale.name.split("\n"))
        return round(max(self._pixels(_BAR_WIDTH + 5) + ticks, name))

    def _place_legend(self, right: int, bottom: int) -> tuple[list[tuple[int, int]], int]:
        """The place of each swatch, in as many lines as it takes, and where the last line ends."""
        places, x, y = [], self.margin, bottom + 2 * self.gap
        for name, _ in self.sheet.legend:
            width = self._pixels(_SWATCH + 14) + round(text_width(name, _NOTE, self.dpi))
            if x > self.margin and x + width > right:
                x, y = self.margin, y + self._line(_SWATCH + 2)
            places.append((x, y))
            x += width
        return places, y + self._pixels(_SWATCH) if places else bottom

    def draw(self, canvas: Canvas) -> None:
        """Draws everything."""
        self._draw_headings(canvas)
        for top, row in zip(self.tops, self.sheet.rows, strict=True):
            for left, width, panel in zip(self.lefts, self.widths, row, strict=False):
                if panel:
                    self._draw_panel(canvas, panel, left, top, width)
        self._draw_links(canvas)
        if self.sheet.scale:
            self._draw_bar(canvas, self.sheet.scale)
        for (x, y), (name, color) in zip(self.swatches, self.sheet.legend, strict=True):
            side = self._pixels(_SWATCH)
            canvas.image(np.full((side, side, 3), color, np.uint8), x, y)
            canvas.text(name, x + side + self._pixels(3), y + side / 2, _NOTE, INK, "left")

    def _draw_headings(self, canvas: Canvas) -> None:
        title = shorten(self.sheet.title, self.width - 2 * self.margin, _HEADING, self.dpi)
        canvas.text(title, self.margin, self.margin + self._line(_HEADING) / 2, _HEADING, INK, "left")
        for left, width, lines in zip(self.lefts, self.widths, self.sheet.headings, strict=False):
            for number, words in enumerate(lines):
                y = self.margin + (self.title_lines + number + 0.5) * self._line(_HEADING)
                shown = shorten(words, width + self.gap // 2, _HEADING, self.dpi)
                canvas.text(shown, left + width / 2, y, _HEADING, INK if number == 0 else MUTED, "center")

    def _draw_panel(self, canvas: Canvas, panel: Panel, left: int, top: int, width: int) -> None:
        canvas.image(panel.pixels, left, top)
        title = shorten(panel.title, width, _TITLE, self.dpi)
        canvas.text(title, left, top - self._line(_TITLE) / 2, _TITLE, INK, "left")
        below = top + panel.pixels.shape[0] + self._line(_NOTE) / 2
        canvas.text(shorten(panel.note, width, _NOTE, self.dpi), left, below, _NOTE, MUTED, "left")
        for frame in panel.frames:
            self._draw_frame(canvas, frame, left, top)

    def _draw_frame(self, canvas: Canvas, frame: Frame, left: int, top: int) -> None:
        """A colored outline between two white ones, so that it stands out from dark and from bright."""
        box, color = frame
        x0, y0, x1, y1 = (edge + start for edge, start in zip(box, (left, top, left, top), strict=True))
        thin, wide = max(1, self._pixels(_CASING)), max(1, self._pixels(_OUTLINE))
        for grown, drawn, points in (
            (2 * thin + wide, PAPER, _OUTLINE + 2 * _CASING),
            (thin + wide, color, _OUTLINE),
        ):
            canvas.frame(x0 - grown, y0 - grown, x1 + grown, y1 + grown, drawn, points)

    def _draw_links(self, canvas: Canvas) -> None:
        if not self.sheet.links:
            return
        (first, second), top = self.lefts[:2], self.tops[0]
        lines = [
            ((x0 + first, y0 + top, x1 + second, y1 + top), color) for (x0, y0), (x1, y1), color in self.sheet.links
        ]
        for line, color in lines:
            canvas.segments([line], [PAPER], 2.0)
            canvas.segments([line], [color], 1.1)
        for (x0, y0, x1, y1), color in lines:
            for x, y in ((x0, y0), (x1, y1)):
                canvas.dot(x, y, 5, PAPER)
                canvas.dot(x, y, 3.6, color)

    def _draw_bar(self, canvas: Canvas, scale: Scale) -> None:
        height, width = self._pixels(_BAR_HEIGHT), self._pixels(_BAR_WIDTH)
        # Half a line is left between the name and the uppermost number.
        names, line = scale.name.split("\n"), self._line(_NOTE)
        top = self.tops[0] + round((len(names) + 0.5) * line)
        height -= top - self.tops[0]
        for number, name in enumerate(names):
            canvas.text(name, self.bar_left, self.tops[0] + (number + 0.5) * line, _NOTE, INK, "left")
        column = colorize(np.linspace(scale.high, scale.low, height), scale.low, scale.high)
        canvas.image(np.repeat(column[:, None], width, 1), self.bar_left, top)
        for share in np.linspace(0, 1, _TICKS):
            y = top + (1 - share) * height
            right = self.bar_left + width
            canvas.segments([(right, y, right + self._pixels(2), y)], [INK], 0.6)
            value = scale.low + share * (scale.high - scale.low)
            canvas.text(scale.format(value), right + self._pixels(4), y, _NOTE, INK, "left")


def panel_side(points: float, dpi: int) -> int:
    """Longer side of a panel in pixels."""
    return round(points * dpi / 72)


def shorten(words: str, width: float, points: float, dpi: float) -> str:
    """A line that fits into a width in pixels, with its middle left out if need be."""
    if text_width(words, points, dpi) <= width:
        return words
    for kept in range(len(words) - 1, 1, -1):
        shown = f"{words[: kept - kept // 2]}…{words[-(kept // 2) :]}"
        if text_width(shown, points, dpi) <= width:
            return shown
    return words[:1]
