"""Sheets of principal components: a row per image, a column for each layer of each model."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sail_encoder.images.decoding import Array
from sail_encoder.pictures.canvas import DPI
from sail_encoder.pictures.components import Grids, as_colors, explained
from sail_encoder.pictures.overlays import Photo, blend, enlarge, faint, photograph, to_bytes
from sail_encoder.pictures.sheets import Panel, Sheet, draw_sheet, panel_side

_WIDTH, _LARGEST, _SMALLEST = 510, 150, 60
"""Points: width that the panels of a row share, and sides of a panel."""

LayerGrids = Mapping[int, Grids]
"""For each layer of a model, counted from 0, its grid of every image."""


def draw_component_sheet(
    scores: list[list[list[Array]]],
    masks: list[list[Array]] | None,
    photos: Sequence[Photo],
    seen: Sequence[tuple[str, LayerGrids]],
    out: Path,
    smooth: bool = False,
    dpi: int = DPI,
) -> None:
    """Draws a sheet of principal components as colors.

    Args:
        scores: What `sheet_scores` gives for these grids.
        masks: For each model which patches of each image are drawn; all by default.
        photos: The images.
        seen: For each model its title and features of the images.
        out: The picture.
        smooth: Whether to interpolate between patches.
        dpi: Pixels per inch.
    """
    pictures = sum(map(len, scores)) + 1
    beside = max(1, math.ceil(math.sqrt(len(photos) / 2))) if pictures == 2 else 1
    side = panel_side(min(_LARGEST, max(_SMALLEST, _WIDTH / (pictures * beside))), dpi)
    colors = as_colors(scores, masks)
    rows: list[list[Panel | None]] = []
    for index, (name, image) in enumerate(photos):
        pixels = photograph(image, side)
        panels: list[Panel | None] = [Panel(pixels, name, f"{image.width}x{image.height}")]
        for model, layers in enumerate(colors):
            mask = None if masks is None else masks[model][index]
            note = "grid {}x{}".format(*layers[0][index].shape[:2])
            panels += [Panel(_paint(one[index], mask, pixels, smooth), note=note) for one in layers]
        rows = [*rows, panels] if index % beside == 0 else [*rows[:-1], [*rows[-1], *panels]]
    headings = [("",), *_headings(scores, masks, seen)] * beside
    draw_sheet(Sheet(rows, headings=headings), out, dpi)


def _headings(
    scores: list[list[list[Array]]], masks: list[list[Array]] | None, seen: Sequence[tuple[str, LayerGrids]]
) -> list[tuple[str, str]]:
    """Model, layer and how much of the variance is shown, for each column."""
    headings = []
    for model, (title, layers) in enumerate(seen):
        for layer, grids in zip(layers, scores[model], strict=True):
            share = explained(grids, None if masks is None else masks[model])
            headings.append((title, f"layer {layer}, {share:.0%} of variance"))
    return headings


def _paint(colors: Array, mask: Array | None, photo: Array, smooth: bool) -> Array:
    """Colors of patches at the size of a photograph, which shows faintly where there is no foreground."""
    size = photo.shape[:2]
    painted = to_bytes(enlarge(colors, size, smooth))
    return painted if mask is None else blend(faint(photo), painted, enlarge(mask, size, smooth=False))
