"""A page to draw on, in pixels from its upper left corner: as a bitmap with Pillow, as SVG or PDF with matplotlib.

Pictures of pixels need nothing that is not installed with the package. In SVG and PDF, text stays text that can be
searched and edited; writing these formats is matplotlib's work, the extra `[plots]`.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sail_encoder.images.decoding import Array
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import replacing
from sail_encoder.io.refusals import check_writable, explain_refusals
from sail_encoder.pictures.colors import PAPER, Color

VECTOR = (".svg", ".pdf")
NUMBERS = (".npy", ".npz")

DPI = 200
"""Pixels per inch where a call does not say."""

_SMOOTHING = 4
"""Sub-pixels per pixel in each direction of letters, slanted lines and dots."""

Segment = tuple[float, float, float, float]
"""x and y of one end and of the other."""


def check_output(out: Path) -> None:
    """Makes sure that a path names a kind of file that can be written, in a place that can be written to.

    Raises:
        UserError: If it does not.
    """
    Image.init()
    kind = out.suffix.lower()
    if kind in VECTOR:
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError(f"--out {out} needs matplotlib: pip install matplotlib, or use {out.stem}.png")
    elif kind not in NUMBERS and (kind in (".gif", ".webp") or Image.EXTENSION.get(kind) not in Image.SAVE):
        raise UserError(
            f"--out {out} names no kind of picture that can be written; use one such as {out.stem}.png, .svg or .pdf, "
            "or .npy for the numbers"
        )
    check_writable(out.parent)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")


class Canvas(ABC):
    """A white page.

    Args:
        width: In pixels.
        height: In pixels.
        dpi: Pixels per inch, by which text and lines are sized.
    """

    def __init__(self, width: int, height: int, dpi: float) -> None:
        self.width, self.height, self.dpi = width, height, dpi

    @abstractmethod
    def image(self, pixels: Array, left: int, top: int) -> None:
        """Draws pixels uint8 [height, width, 3], one to one."""

    @abstractmethod
    def text(self, words: str, x: float, y: float, points: float, color: Color, align: str) -> None:
        """Writes one line; `y` is its middle, `x` its left end, middle or right end, as `align` says."""

    @abstractmethod
    def segments(self, ends: Sequence[Segment], colors: Sequence[Color], points: float) -> None:
        """Draws straight lines, the later over the earlier."""

    @abstractmethod
    def frame(self, left: float, top: float, right: float, bottom: float, color: Color, points: float) -> None:
        """Draws the outline of a box."""

    @abstractmethod
    def dot(self, x: float, y: float, points: float, color: Color) -> None:
        """Draws a disc of a diameter in points."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes the page."""


class Bitmap(Canvas):
    """A page of pixels."""

    def __init__(self, width: int, height: int, dpi: float) -> None:
        super().__init__(width, height, dpi)
        self.page = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.page)

    def image(self, pixels: Array, left: int, top: int) -> None:
        self.page.paste(Image.fromarray(pixels), (left, top))

    def text(self, words: str, x: float, y: float, points: float, color: Color, align: str) -> None:
        # Set larger and reduced: at few pixels Pillow moves letters to whole ones, and dots into their neighbors.
        font = _font(points * self.dpi / 72)
        width, height = font.getlength(words), sum(font.getmetrics())
        mask = Image.new("L", (int(width / _SMOOTHING + 4) * _SMOOTHING, int(height / _SMOOTHING + 4) * _SMOOTHING))
        left = x - {"left": 0, "center": 0.5, "right": 1}[align] * width / _SMOOTHING
        corner = (int(left) - 1, int(y - mask.height / _SMOOTHING / 2))
        inside = ((left - corner[0]) * _SMOOTHING, (y - corner[1]) * _SMOOTHING)
        ImageDraw.Draw(mask).text(inside, words, fill=255, font=font, anchor="lm")
        self.page.paste(color, corner, mask.reduce(_SMOOTHING))

    def segments(self, ends: Sequence[Segment], colors: Sequence[Color], points: float) -> None:
        width = points * self.dpi / 72
        for (x0, y0, x1, y1), color in zip(ends, colors, strict=True):
            self._smooth((x0, y0, x1, y1), width, color, lambda pen, box, wide: pen.line(box, fill=255, width=wide))

    def frame(self, left: float, top: float, right: float, bottom: float, color: Color, points: float) -> None:
        width = max(1, round(points * self.dpi / 72))
        self.pen.rectangle((left, top, right - 1, bottom - 1), outline=color, width=width)

    def dot(self, x: float, y: float, points: float, color: Color) -> None:
        radius = points * self.dpi / 144
        box = (x - radius, y - radius, x + radius, y + radius)
        self._smooth(box, radius, color, lambda pen, ends, _: pen.ellipse(ends, fill=255))

    def _smooth(self, ends: Segment, margin: float, color: Color, draw: Any) -> None:
        """Draws with smooth edges, which Pillow does not do: larger, on a mask of the surroundings."""
        x0, y0, x1, y1 = ends
        left, top = int(min(x0, x1) - margin) - 1, int(min(y0, y1) - margin) - 1
        right, bottom = int(max(x0, x1) + margin) + 2, int(max(y0, y1) + margin) + 2
        mask = Image.new("L", ((right - left) * _SMOOTHING, (bottom - top) * _SMOOTHING))
        inside = tuple((end - start) * _SMOOTHING for end, start in zip(ends, (left, top, left, top), strict=True))
        draw(ImageDraw.Draw(mask), inside, max(1, round(margin * _SMOOTHING)))
        self.page.paste(color, (left, top), mask.reduce(_SMOOTHING))

    def save(self, path: Path) -> None:
        self.page.save(path, dpi=(self.dpi, self.dpi), quality=92)


class Vectors(Canvas):
    """A page of shapes and text, with the pixels of images embedded as they are."""

    def __init__(self, width: int, height: int, dpi: float) -> None:
        from matplotlib.figure import Figure

        super().__init__(width, height, dpi)
        self.page = Figure((width / dpi, height / dpi), dpi=dpi)
        self.axes: Any = self.page.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def image(self, pixels: Array, left: int, top: int) -> None:
        extent = (left, left + pixels.shape[1], top + pixels.shape[0], top)
        self.axes.imshow(pixels, extent=extent, interpolation="none", aspect="auto")
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))

    def text(self, words: str, x: float, y: float, points: float, color: Color, align: str) -> None:
        style = {"fontsize": points, "color": _shares(color), "ha": align, "va": "center_baseline"}
        # A dollar sign in a file's name begins no formula.
        self.axes.text(x, y, words, parse_math=False, **style)

    def segments(self, ends: Sequence[Segment], colors: Sequence[Color], points: float) -> None:
        for (x0, y0, x1, y1), color in zip(ends, colors, strict=True):
            self.axes.plot((x0, x1), (y0, y1), color=_shares(color), linewidth=points, solid_capstyle="butt")

    def frame(self, left: float, top: float, right: float, bottom: float, color: Color, points: float) -> None:
        from matplotlib.patches import Rectangle

        inset = points * self.dpi / 144
        box = Rectangle((left + inset, top + inset), right - left - 2 * inset, bottom - top - 2 * inset, zorder=3)
        box.set(fill=False, edgecolor=_shares(color), linewidth=points, joinstyle="miter")
        self.axes.add_patch(box)

    def dot(self, x: float, y: float, points: float, color: Color) -> None:
        self.axes.plot([x], [y], "o", color=_shares(color), markersize=points, markeredgewidth=0)

    def save(self, path: Path) -> None:
        import matplotlib

        # The time of writing would make two equal pictures differ.
        times = {"Date": None} if path.suffix.lower() == ".svg" else {"CreationDate": None}
        with matplotlib.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "sail"}):
            self.page.savefig(path, dpi=self.dpi, metadata=times)


def open_canvas(out: Path, width: int, height: int, dpi: float) -> Canvas:
    """A page for a file of this name."""
    kind = Vectors if out.suffix.lower() in VECTOR else Bitmap
    return kind(width, height, dpi)


def save_canvas(canvas: Canvas, out: Path) -> None:
    """Writes a page, making its folder.

    Raises:
        StoreError: If the disk is full, or does not take the file.
    """
    with explain_refusals(out.parent), replacing(out) as unfinished:
        canvas.save(unfinished)


def save_numbers(arrays: dict[str, Array], lead: tuple[int, ...], out: Path) -> None:
    """Writes arrays: to .npz under their names, to .npy as one array.

    Args:
        arrays: The arrays.
        lead: Axes that stand before those of each array in .npy.
        out: The file.

    Raises:
        UserError: If .npy is asked for, and they differ in shape.
        StoreError: If the disk is full, or does not take the file.
    """
    is_one = out.suffix.lower() == ".npy"
    shapes = {array.shape for array in arrays.values()}
    if is_one and len(shapes) > 1:
        sizes = " and ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise UserError(f"--out {out} holds one array, and these are {sizes}; use {out.with_suffix('.npz')}")
    with explain_refusals(out.parent), replacing(out) as unfinished, unfinished.open("wb") as file:
        if is_one:
            (shape,) = shapes
            np.save(file, np.stack(list(arrays.values())).reshape(*lead, *shape))
        else:
            np.savez(file, **cast(Any, arrays))


def text_width(words: str, points: float, dpi: float) -> float:
    """Width of a line of text in pixels, with room for the somewhat wider font of another format."""
    return 1.12 * float(_font(points * dpi / 72).getlength(words)) / _SMOOTHING


def _shares(color: Color) -> tuple[float, ...]:
    return tuple(value / 255 for value in color)


@cache
def _font(pixels: float) -> Any:
    """The font that comes with Pillow, `_SMOOTHING` times as large as asked for."""
    return ImageFont.load_default(pixels * _SMOOTHING)
