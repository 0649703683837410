"""`sail similarity`: how similar the patches of images are to chosen ones."""

import re
from collections.abc import Sequence
from pathlib import Path

from sail_encoder.backbones.registry import check_features, choose_backbone, resolve_features
from sail_encoder.commands.drawing import check_drawing, is_numbers, read_photo, read_photos, see
from sail_encoder.images.decoding import Array
from sail_encoder.images.geometry import Geometry
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError
from sail_encoder.pictures.canvas import DPI, save_numbers
from sail_encoder.pictures.colors import MARKS, colorize
from sail_encoder.pictures.overlays import Photo, enlarge, photograph, pixel_box, relief
from sail_encoder.pictures.sheets import Panel, Scale, Sheet, draw_sheet, panel_side
from sail_encoder.pictures.similarity import best_patch, cosine_map, score_range

_WIDTH, _LARGEST, _SMALLEST = 510, 200, 90
"""Points: width that the panels of a row share, and sides of a panel."""

_TARGETS = 24


def similarity(
    image: str,
    at: list[str] | None = None,
    at_pixel: list[str] | None = None,
    to: list[str] | None = None,
    out: str = "similarity.png",
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    layer: str = "-1",
    smooth: bool = False,
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    dpi: int = DPI,
) -> int:
    """Draws how similar the patches of an image, or of others, are to chosen patches.

    The chosen patches are outlined in the photograph; the cosine similarity of the features to each follows to the
    right, on one scale, which leaves out a patch's similarity to itself. In other images the best match is outlined.

    Args:
        image: The image file.
        at: Patches as ROW,COLUMN of the grid, negatives from the end; several separated by spaces, or --at again.
        at_pixel: Patches by a point X,Y of the image in pixels; several as with --at.
        to: Other images, whose patches are compared too: a file, folder, glob or list; --to again for more.
        out: Picture to write: .png, .jpg, .svg or .pdf; .npy takes the similarities, [images, patches chosen, nh, nw],
            and .npz grids of different sizes.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or hf/NAME.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        layer: Block to take features from; negatives count from the end.
        smooth: Whether to interpolate between patches.
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
    patches, points = list(map(_read_patch, _words(at))), list(map(_read_point, _words(at_pixel)))
    if not patches and not points:
        raise UserError("no patch to compare with; name one with --at ROW,COLUMN or --at-pixel X,Y")
    photos = [read_photo(image, exif_rotate), *read_photos(to or [], exif_rotate, _TARGETS)[0]]
    spec, asked = resolve_features(
        model, layer, resize, max_tokens, **choose_backbone(weights, random_weights, max_tiles, msac, project)
    )
    _, first = photos[0]
    size = (first.height, first.width)
    geometry = Geometry(size, size, spec.grid(size, asked.size))
    queries = [_check_patch(patch, geometry) for patch in patches]
    queries += [_patch_over(point, geometry) for point in points]
    grids = see(photos, asked)[asked.layers[0]]
    maps = [[cosine_map(grids[0][query], grid) for query in queries] for grid in grids]
    if is_numbers(path):
        save_numbers(_named(photos, queries, maps), (len(photos), len(queries)), path)
    else:
        _draw(f"{asked.title}, layer {asked.layers[0]}", photos, queries, maps, path, smooth, dpi)
    low, high = _range(maps, queries)
    shown = " ".join(f"{row},{column}" for row, column in queries)
    print(f"wrote {out}: similarity to patch {shown} of {image}, elsewhere from {low:.2f} to {high:.2f}")
    return 0


def _named(photos: Sequence[Photo], queries: Sequence[Size], maps: Sequence[Sequence[Array]]) -> dict[str, Array]:
    return {
        f"{place}/{name}/{row},{column}": scores
        for place, (name, _) in enumerate(photos)
        for (row, column), scores in zip(queries, maps[place], strict=True)
    }


def _words(texts: Sequence[str] | None) -> list[str]:
    """Patches or points that are separated by spaces, with or without one after the comma."""
    return [word for text in texts or () for word in re.sub(r"\s*,\s*", ",", text).split()]


def _read_patch(text: str) -> Size:
    try:
        row, column = (int(index) for index in text.split(","))
    except ValueError:
        raise UserError(f"--at {text} is no patch; give its row and column, such as 3,5") from None
    return row, column


def _read_point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(place) for place in text.split(","))
    except ValueError:
        raise UserError(f"--at-pixel {text} is no point; give its x and y in pixels, such as 320,200") from None
    return x, y


def _check_patch(patch: Size, geometry: Geometry) -> Size:
    """A patch with its indices counted from the start."""
    (row, column), (rows, columns) = patch, geometry.grid
    if not (-rows <= row < rows and -columns <= column < columns):
        raise UserError(f"--at {row},{column}: patch ({row}, {column}) is outside the {rows}x{columns} grid")
    return row % rows, column % columns


def _patch_over(point: tuple[float, float], geometry: Geometry) -> Size:
    try:
        return geometry.patch_at(*point)
    except IndexError:
        height, width = geometry.image_size
        x, y = (f"{place:g}" for place in point)
        raise UserError(
            f"--at-pixel {x},{y} is outside the image; x goes from 0 to {width - 1}, y from 0 to {height - 1}"
        ) from None


def _range(maps: Sequence[Sequence[Array]], queries: Sequence[Size]) -> tuple[float, float]:
    """Lowest and highest similarity, of a patch to itself left out."""
    everything = [scores for image in maps for scores in image]
    left_out = [*queries, *[None] * (len(everything) - len(queries))]
    return score_range(everything, left_out)


def _draw(
    title: str,
    photos: Sequence[Photo],
    queries: Sequence[Size],
    maps: Sequence[Sequence[Array]],
    out: Path,
    smooth: bool,
    dpi: int,
) -> None:
    low, high = _range(maps, queries)
    side = panel_side(min(_LARGEST, max(_SMALLEST, _WIDTH / (len(queries) + 1))), dpi)
    rows: list[list[Panel | None]] = []
    for place, (name, image) in enumerate(photos):
        pixels, size, grid = photograph(image, side), (image.height, image.width), maps[place][0].shape
        geometry = Geometry(size, size, grid)
        chosen = queries if place == 0 else [best_patch(scores) for scores in maps[place]]
        frames = [
            (pixel_box(geometry.patch_box(*patch), pixels.shape[:2], size), MARKS[number % len(MARKS)])
            for number, patch in enumerate(chosen)
        ]
        panels: list[Panel | None] = [Panel(pixels, name, "grid {}x{}".format(*grid), frames)]
        for frame, patch, scores in zip(frames, chosen, maps[place], strict=True):
            colors = colorize(enlarge(scores, pixels.shape[:2], smooth), low, high)
            note = "" if place == 0 else f"best match {patch[0]},{patch[1]}: {scores[patch]:.2f}"
            panels.append(Panel(relief(colors, pixels, grid), note=note, frames=[frame]))
        rows.append(panels)
    headings = [("",), *((f"to patch {row},{column}",) for row, column in queries)]
    draw_sheet(Sheet(rows, title, headings, Scale(low, high, "cosine\nsimilarity")), out, dpi)
