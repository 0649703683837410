"""Views: an encoded image as pictures with words that say the same to those who do not see them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError
from sail_encoder.page.encodings import Encoding
from sail_encoder.page.photos import Photo
from sail_encoder.pictures.colors import MARKS, Color, colorize
from sail_encoder.pictures.masks import overlay_masks
from sail_encoder.pictures.overlays import enlarge, photograph, pixel_box, relief, to_bytes
from sail_encoder.pictures.sheets import Link, Panel, Scale, Sheet, render_sheet
from sail_encoder.pictures.similarity import cosine_map, mutual_matches, score_range

STRONGEST = 30
"""Pairs of patches that are drawn at most."""

_DPI = 144
_PAIR = 280
"""Longer side of each of two photographs beside each other, in pixels."""


View = tuple[Array, str]
"""A picture uint8 [height, width, 3], and a sentence that says what is to be seen."""

Segmentation = tuple[Array, Sequence[tuple[str, Color]]]
"""An image with the colors of its classes over it, uint8 [height, width, 3], and names and colors of these classes."""


def check_patch(encoding: Encoding, patch: Size) -> Size:
    """A patch, if the image has it.

    Raises:
        UserError: If it does not.
    """
    (row, column), (rows, columns) = patch, encoding.geometry.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(
            f"there is no patch in row {row}, column {column}; rows go from 0 to {rows - 1}, columns from 0 to "
            f"{columns - 1}"
        )
    return row, column


def view_similarity(photo: Photo, encoding: Encoding, layer: int, patch: Size) -> View:
    """Cosine similarity of all patches to one, as heat over the photograph with its scale.

    The scale leaves out the patch itself, which is as similar to itself as can be.
    """
    scores = cosine_map(encoding.grids[layer][patch], encoding.grids[layer])
    low, high = score_range([scores], [patch])
    size, geometry = _size(photo), encoding.geometry
    heat = relief(colorize(enlarge(scores, size, smooth=False), low, high), photo.pixels, geometry.grid)
    frame = (pixel_box(geometry.patch_box(*patch), size, geometry.image_size), MARKS[0])
    sheet = Sheet([[Panel(heat, frames=[frame])]], scale=Scale(low, high, "cosine\nsimilarity"))
    words = (
        f"Similarity of all patches of {photo.name} to the one in row {patch[0]}, column {patch[1]}, at layer {layer}: "
        f"elsewhere from {low:.2f} to {high:.2f}."
    )
    return render_sheet(sheet, _DPI), words


def view_components(photo: Photo, encoding: Encoding, layer: int) -> View:
    """The first three principal components of the patches as red, green and blue, in one basis for all layers."""
    colors, explained = encoding.components
    pixels = to_bytes(enlarge(colors[layer], _size(photo), smooth=False))
    words = (
        f"Principal components of the patches of {photo.name} at layer {layer} as colors: they show "
        f"{explained[layer]:.0%} of its variance. Colors mean the same at every layer."
    )
    return pixels, words


def view_matches(photos: Sequence[Photo], encodings: Sequence[Encoding], layer: int) -> View:
    """Lines between patches of two images that are each the other's nearest, in the color of their similarity."""
    pairs, similarity = mutual_matches(*(encoding.grids[layer] for encoding in encodings))
    count = len(pairs)
    pairs, similarity = pairs[:STRONGEST], similarity[:STRONGEST]
    low, high = float(similarity[-1]), float(similarity[0])
    pictures = [photograph(Image.fromarray(photo.pixels), _PAIR) for photo in photos]
    links: list[Link] = [
        (*_ends(pair, encodings, pictures), _as_color(shade))
        # The strongest are drawn last, over the others.
        for pair, shade in zip(pairs[::-1], colorize(similarity[::-1], low, high), strict=True)
    ]
    panels = [Panel(pixels, photo.name) for pixels, photo in zip(pictures, photos, strict=True)]
    sheet = Sheet([panels], scale=Scale(low, high, "cosine\nsimilarity"), links=links)
    drawn = f"The {len(pairs)} strongest of {count}" if len(pairs) < count else f"All {count}"
    words = (
        f"{drawn} pairs of patches of {photos[0].name} and {photos[1].name} that are each the other's nearest at layer "
        f"{layer}: similarity {low:.2f} to {high:.2f}."
    )
    return render_sheet(sheet, _DPI), words


def view_segmentation(photo: Photo, found: Segmentation) -> View:
    """Classes over the photograph, with their legend."""
    overlay, legend = found
    names = [name for name, _ in legend]
    sheet = Sheet([[Panel(overlay)]], legend=legend)
    words = f"Classes that the head finds in {photo.name}: {', '.join(names) or 'background alone'}."
    return render_sheet(sheet, _DPI), words


def view_masks(photo: Photo, masks: Array) -> View:
    """Masks of an answer, bool [q, height, width] at the size of the image, over the photograph."""
    size = _size(photo)
    resized = [Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST) for mask in masks]
    shares = ", ".join(f"{mask.mean():.0%}" for mask in masks)
    words = f"Masks of the answer over {photo.name}: {len(masks)}, of {shares} of its pixels."
    return overlay_masks(photo.pixels, np.stack([np.asarray(mask) for mask in resized])), words


def _size(photo: Photo) -> Size:
    return photo.pixels.shape[0], photo.pixels.shape[1]


def _ends(
    pair: Array, encodings: Sequence[Encoding], pictures: Sequence[Array]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(x, y) of the middle of each patch of a pair, in pixels of its picture."""
    first, second = (
        (
            (column + 0.5) * pixels.shape[1] / encoding.geometry.grid[1],
            (row + 0.5) * pixels.shape[0] / encoding.geometry.grid[0],
        )
        for (row, column), encoding, pixels in zip((pair[:2], pair[2:]), encodings, pictures, strict=True)
    )
    return first, second


def _as_color(shade: Array) -> Color:
    red, green, blue = shade.tolist()
    return red, green, blue
