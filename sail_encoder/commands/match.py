"""`sail match`: patches of two images that are each the other's nearest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sail_encoder.backbones.registry import check_features, choose_backbone, resolve_features
from sail_encoder.commands.drawing import check_drawing, is_numbers, read_photo, see
from sail_encoder.images.decoding import Array
from sail_encoder.io.errors import require_positive
from sail_encoder.pictures.canvas import DPI, save_numbers
from sail_encoder.pictures.colors import Color, colorize
from sail_encoder.pictures.overlays import Photo, photograph
from sail_encoder.pictures.sheets import Panel, Scale, Sheet, draw_sheet, panel_side
from sail_encoder.pictures.similarity import mutual_matches

_SIDE = 230
"""Longer side of a panel in points."""


def match(
    first: str,
    second: str,
    strongest: int = 40,
    out: str = "match.png",
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    layer: str = "-1",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    dpi: int = DPI,
) -> int:
    """Draws which patches of two images are each the other's nearest.

    Nearest is the patch of the highest cosine similarity; a line joins two patches that are so in both directions, in
    the color of their similarity.

    Args:
        first: One image file.
        second: The other.
        strongest: How many pairs at most, those of the highest similarity.
        out: Picture to write: .png, .jpg, .svg or .pdf; .npy takes the pairs, [pairs, 5]: row and column in the first
            image, row and column in the second, and similarity.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or hf/NAME.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        layer: Block to take features from; negatives count from the end.
        resize: The model's own rule (auto), native, a side such as 224, or 448x672.
        max_tokens: Patches per image at most under the native rule; by default the model's own.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
        dpi: Pixels per inch of the picture; text and panels grow with it.

    Returns:
        Exit status 0.
    """
    path = Path(out)
    check_drawing(path, dpi)
    check_features(layer, resize, max_tokens)
    require_positive("strongest", strongest)
    photos = [read_photo(first, exif_rotate), read_photo(second, exif_rotate)]
    _, asked = resolve_features(
        model, layer, resize, max_tokens, **choose_backbone(weights, random_weights, max_tiles, msac, project)
    )
    grids = see(photos, asked)[asked.layers[0]]
    pairs, similarity = mutual_matches(*grids)
    count = len(pairs)
    pairs, similarity = pairs[:strongest], similarity[:strongest]
    if is_numbers(path):
        save_numbers({"pairs": np.concatenate([pairs, similarity[:, None]], 1).astype(np.float32)}, (), path)
    else:
        _draw(f"{asked.title}, layer {asked.layers[0]}", photos, grids, pairs, similarity, path, dpi)
    drawn = f"the {len(pairs)} strongest of {count}" if len(pairs) < count else f"all {count}"
    print(f"wrote {out}: {drawn} mutual matches, similarity {similarity[-1]:.2f} to {similarity[0]:.2f}")
    return 0


def _draw(
    name: str,
    photos: Sequence[Photo],
    grids: Sequence[Array],
    pairs: Array,
    similarity: Array,
    out: Path,
    dpi: int,
) -> None:
    low, high = float(similarity[-1]), float(similarity[0])
    pixels = [photograph(image, panel_side(_SIDE, dpi)) for _, image in photos]
    links = [
        (_center(grids[0], pair[:2], pixels[0]), _center(grids[1], pair[2:], pixels[1]), color)
        # The strongest are drawn last, over the others.
        for pair, color in zip(pairs[::-1], _colors(similarity[::-1], low, high), strict=True)
    ]
    notes = ["grid {}x{}".format(*grid.shape[:2]) for grid in grids]
    row = [Panel(*panel) for panel in zip(pixels, (name for name, _ in photos), notes, strict=True)]
    draw_sheet(Sheet([row], name, scale=Scale(low, high, "cosine\nsimilarity"), links=links), out, dpi)


def _center(grid: Array, patch: Array, pixels: Array) -> tuple[float, float]:
    """(x, y) of the middle of a patch in pixels of the panel."""
    row, column = patch
    (rows, columns), (height, width) = grid.shape[:2], pixels.shape[:2]
    return (column + 0.5) * width / columns, (row + 0.5) * height / rows


def _colors(similarity: Array, low: float, high: float) -> list[Color]:
    return [(int(red), int(green), int(blue)) for red, green, blue in colorize(similarity, low, high)]
