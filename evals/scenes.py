"""Drawn scenes with everything known about them: caption, questions and answers, class, boxes, a mask per pixel.

A scene is a function of its seed, so a data set is a range of seeds. It stands in for real data where none can be
shipped: `sail-tiny` is trained on scenes, and tests, demos and small evaluations measure on seeds it never saw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from sail_encoder.images.decoding import Array

COLORS = {
    "red": (215, 30, 35),
    "orange": (245, 130, 20),
    "yellow": (250, 225, 45),
    "green": (40, 155, 60),
    "cyan": (50, 205, 220),
    "blue": (40, 70, 210),
    "purple": (125, 40, 165),
    "pink": (250, 130, 190),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("flat", "shaded", "cloudy", "tiled")
RADII = {"small": (0.13, 0.16), "medium": (0.19, 0.23), "large": (0.28, 0.34)}
"""Radius of a thing by its size word, as a share of the image's shorter side."""

TRAINING_SEEDS = range(10_000_000, 2**31)
"""Seeds that `sail-tiny` may be trained on; evaluations draw from below."""

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        shape: One of `SHAPES`.
        color: A key of `COLORS`.
        texture: One of `TEXTURES`.
        size: A key of `RADII`.
        place: Where it is, in words: "top left", "center", "right", ...
        row: Vertical centre in pixels.
        column: Horizontal centre in pixels.
        radius: Half the side of its bounding square, before rotation, in pixels.
        box: (left, top, right, bottom) of its visible pixels.
    """

    shape: str
    color: str
    texture: str
    size: str
    place: str
    row: float
    column: float
    radius: float
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """Color and shape, as a question would name it."""
        return f"{self.color} {self.shape}"

    @property
    def description(self) -> str:
        """All that is to be said about it alone."""
        texture = "" if self.texture == "plain" else f"{self.texture} "
        where = "in the center" if self.place == "center" else f"at the {self.place}"
        return f"a {self.size} {self.color} {texture}{self.shape} {where}"


def with_article(name: str) -> str:
    """Name with "a" or "an"."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


@dataclass(frozen=True)
class Scene:
    """A drawn image and what it shows.

    Attributes:
        image: uint8 [height, width, 3].
        mask: uint8 [height, width], an index into `CLASSES` per pixel.
        things: The objects, none of which overlap, in reading order.
        background: One of `BACKGROUNDS`.
        seed: What it was drawn from.
    """

    image: Array
    mask: Array
    things: tuple[Thing, ...]
    background: str
    seed: int

    @property
    def label(self) -> int:
        """Index into `SHAPES` of the first thing."""
        return SHAPES.index(self.things[0].shape)

    @cached_property
    def caption(self) -> str:
        """One sentence that names every thing with its attributes."""
        descriptions = [thing.description for thing in self.things]
        head, tail = descriptions[:-1], descriptions[-1]
        return f"{', '.join(head)} and {tail}" if head else tail


def draw_scene(
    seed: int,
    things: int | Sequence[int] = (1, 2, 3, 4),
    height: int | None = None,
    width: int | None = None,
    sizes: Sequence[str] = tuple(RADII),
) -> Scene:
    """Draws the scene of a seed.

    Args:
        seed: Any non-negative integer; equal arguments give equal scenes.
        things: How many objects, or the numbers to choose from. Fewer are drawn where no room is left.
        height: Height in pixels; chosen between 96 and 224 where left out.
        width: Width in pixels, likewise.
        sizes: Sizes to choose from, keys of `RADII`. Three things or more are never large.

    Returns:
        The scene.
    """
    rng = np.random.default_rng(seed)
    height = height or int(rng.integers(96, 225))
    width = width or int(rng.integers(96, 225))
    count = things if isinstance(things, int) else int(rng.choice(things))
    background = str(rng.choice(BACKGROUNDS))
    canvas = _draw_background(background, height, width, rng)
    mask = np.zeros((height, width), np.uint8)
    drawn = [_draw_thing(canvas, mask, *spot, rng) for spot in _find_room(count, height, width, sizes, rng)]
    things_in_order = tuple(sorted(drawn, key=lambda thing: (thing.row // (height / 3), thing.column)))
    return Scene(canvas.round().clip(0, 255).astype(np.uint8), mask, things_in_order, background, seed)


def _find_room(
    count: int, height: int, width: int, sizes: Sequence[str], rng: Generator
) -> list[tuple[float, float, float, str]]:
    """Chooses (row, column, radius, size word) for up to `count` things that do not touch."""
    spots: list[tuple[float, float, float, str]] = []
    sizes = [size for size in sizes if count < 3 or size != "large"]
    for _ in range(40 * count):
        if len(spots) == count:
            break
        size = str(rng.choice(sizes))
        radius = min(height, width) * rng.uniform(*RADII[size])
        reach = 1.15 * radius
        row, column = rng.uniform(reach, height - reach), rng.uniform(reach, width - reach)
        if all(math.hypot(row - r, column - c) > 1.3 * (radius + other) for r, c, other, _ in spots):
            spots.append((row, column, radius, size))
    return spots


def _draw_thing(
    canvas: Array, mask: Array, row: float, column: float, radius: float, size: str, rng: Generator
) -> Thing:
    shape, color, texture = (str(rng.choice(choices)) for choices in (SHAPES, list(COLORS), TEXTURES))
    reach = math.ceil(1.3 * radius)
    top, left = max(int(row) - reach, 0), max(int(column) - reach, 0)
    window = np.s_[top : int(row) + reach, left : int(column) + reach]
    view = canvas[window]
    coverage = _coverage(shape, view.shape[:2], row - top, column - left, radius, rng.uniform(-0.3, 0.3))
    paint = _paint(COLORS[color], texture, view.shape[:2], radius, rng)
    view += coverage[..., None] * (paint - view)
    inside = coverage > 0.5
    mask[window][inside] = 1 + SHAPES.index(shape)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
    place = _place(row / canvas.shape[0], column / canvas.shape[1])
    return Thing(shape, color, texture, size, place, row, column, radius, box)


def _place(down: float, across: float) -> str:
    words = ("top", "", "bottom")[int(3 * down)], ("left", "", "right")[int(3 * across)]
    return " ".join(word for word in words if word) or "center"


def _coverage(shape: str, extent: tuple[int, ...], row: float, column: float, radius: float, angle: float) -> Array:
    """Share of each pixel that the shape covers, float32 in [0, 1]."""
    scale = _SUPERSAMPLING
    image = Image.new("L", (extent[1] * scale, extent[0] * scale))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    draw = ImageDraw.Draw(image)
    for outline, value in zip(_OUTLINES[shape](), (255, 0), strict=False):
        points = (outline @ turn.T * radius + (column, row)) * scale
        draw.polygon([(float(x), float(y)) for x, y in points], fill=value)
    return np.asarray(image.reduce(scale), np.float32) / 255


def _paint(color: tuple[int, int, int], texture: str, extent: tuple[int, ...], radius: float, rng: Generator) -> Array:
    """The color of each pixel of a thing, float32 [height, width, 3]: the pattern's second tone is darker."""
    base = np.clip(np.array(color, np.float32) + rng.normal(0, 8, 3), 0, 255).astype(np.float32)
    rows, columns = np.mgrid[: extent[0], : extent[1]].astype(np.float32)
    period = radius * rng.uniform(0.35, 0.5)
    angle = rng.uniform(0, math.pi)
    u = (rows * math.cos(angle) + columns * math.sin(angle)) / period
    v = (columns * math.cos(angle) - rows * math.sin(angle)) / period
    dark = {
        "plain": np.zeros_like(u, bool),
        "striped": u % 1 < 0.45,
        "dotted": (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09,
        "checked": (u % 2 < 1) ^ (v % 2 < 1),
    }[texture]
    return np.where(dark[..., None], 0.45 * base, base)


def _draw_background(kind: str, height: int, width: int, rng: Generator) -> Array:
    """A muted background, float32 [height, width, 3], so that its color is never mistaken for a thing's."""
    first, second = _muted_color(rng), _muted_color(rng)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    if kind == "flat":
        blend = np.zeros((height, width), np.float32)
    elif kind == "shaded":
        angle = rng.uniform(0, 2 * math.pi)
        ramp = rows / height * math.sin(angle) + columns / width * math.cos(angle)
        blend = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-6)
    elif kind == "cloudy":
        coarse = Image.fromarray(rng.uniform(0, 1, (6, 6)).astype(np.float32))
        blend = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    else:
        period = rng.uniform(9, 18)
        blend = ((rows // period + columns // period) % 2).astype(np.float32) * 0.6
    grain = rng.normal(0, rng.uniform(0, 6), (height, width, 1))
    return (first + blend[..., None] * (second - first) + grain).astype(np.float32)


def _muted_color(rng: Generator) -> Array:
    gray = rng.uniform(40, 215)
    return (gray + rng.uniform(-18, 18, 3)).astype(np.float32)


def _regular(corners: int, inner: float = 1.0) -> Array:
    """Corners of a regular polygon, or of a star where every second one is pulled in; [corners, 2] as (x, y)."""
    angles = np.arange(corners) * 2 * math.pi / corners - math.pi / 2
    radii = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)


def _heart() -> Array:
    t = np.linspace(0, 2 * math.pi, 60)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack((x, -y - 2.5), axis=1) / 15


def _cross(arm: float = 0.3) -> Array:
    quarter = np.array([(arm, arm), (1, arm), (1, -arm), (arm, -arm)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k).T for k in range(4)])


_SQUARE = np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
_ARROW = np.array([(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)])

_OUTLINES: dict[str, Callable[[], tuple[Array, ...]]] = {
    "circle": lambda: (_regular(64),),
    "square": lambda: (_SQUARE,),
    "triangle": lambda: (_regular(3),),
    "star": lambda: (_regular(10, inner=0.42),),
    "cross": lambda: (_cross(),),
    "ring": lambda: (_regular(64), 0.55 * _regular(64)),
    "heart": lambda: (_heart(),),
    "arrow": lambda: (_ARROW,),
}
"""The outline of each shape in the unit circle; a second outline is cut out."""

SHAPES = tuple(_OUTLINES)
CLASSES = ("background", *SHAPES)
