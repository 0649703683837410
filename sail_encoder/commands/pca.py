"""`sail pca`: principal components of features as colors, for images, layers and models on one sheet."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sail_encoder.backbones.registry import check_features, choose_backbone, family_of, resolve_features
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.commands.drawing import (
    DPI,
    Photo,
    Seen,
    check_drawing,
    is_numbers,
    panel_side,
    read_photos,
    see,
)
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.geometry import Geometry
from sail_encoder.io.errors import ImageError, UserError, require_positive
from sail_encoder.pictures.canvas import save_numbers
from sail_encoder.pictures.components import as_colors, common_scores, explained, foreground_masks, sheet_scores
from sail_encoder.pictures.overlays import blend, enlarge, faint, to_bytes
from sail_encoder.pictures.sheets import Panel, Sheet, draw_sheet
from sail_encoder.store.reading import FeatureFolder

_WIDTH, _LARGEST, _SMALLEST = 510, 150, 60
"""Points: width that the panels of a row share, and sides of a panel."""


@dataclass(frozen=True)
class Column:
    """Features of one model, on all images.

    Attributes:
        title: Name of the model.
        seen: The images as it sees them.
    """

    title: str
    seen: list[Seen]

    @property
    def layers(self) -> list[int]:
        """Blocks whose features there are."""
        return list(self.seen[0].grids)


def pca(
    images: list[str] | None = None,
    out: str = "pca.png",
    models: str | None = None,
    weights: str | None = None,
    random_weights: bool = False,
    max_tiles: int | None = None,
    msac: bool = False,
    project: bool = False,
    layers: str | None = None,
    features: str | None = None,
    foreground: str | None = None,
    smooth: bool = False,
    limit: int = 24,
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
    dpi: int = DPI,
) -> int:
    """Draws the principal components of features, for images, layers and models on one sheet.

    The first three components of the patches become red, green and blue: patches of like color have like features. All
    images and layers of a model share one basis; those of further models are turned (orthogonal Procrustes) to agree
    best with the first. A row is an image, a column a layer of a model; a folder is drawn as a contact sheet.

    Args:
        images: Image files, folders, globs or lists; with --features names of images in that folder, by default all.
        out: Picture to write: .png, .jpg, .svg or .pdf; .npy takes the scores, [images, columns, nh, nw, 3], and .npz
            grids of different sizes.
        models: sail-tiny (the default), a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, hf/NAME, or
            several of them separated by commas.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        max_tiles: For SAIL-VL, tiles per image at most; by default what the checkpoint says.
        msac: For SAIL-VL, whether to see images under a second grid of tiles too; features are the mean of both.
        project: For SAIL-VL, whether to take the features that its language model receives.
        layers: Blocks to take features from: -1 (the default), 0,11,23, all, last4 or even4. With --features by
            default all that are stored.
        features: A folder of sail extract, to draw what is stored there.
        foreground: Draws only the foreground: pc1 parts the patches by their first component where they differ most, a
            number such as 0.6 at that share of its range.
        smooth: Whether to interpolate between patches.
        limit: Images at most.
        resize: The model's own rule (auto), native, a side such as 224, or 448x672.
        max_tokens: Patches per image at most under the native rule; by default the model's own.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
        dpi: Pixels per inch of the picture; text and panels grow with it.

    Returns:
        Exit status 0.
    """
    path, threshold = Path(out), _read_foreground(foreground)
    check_drawing(path, dpi)
    require_positive("limit", limit)
    if features is None:
        check_features(layers or "-1", resize, max_tokens)
        photos, count = read_photos(images or [], exif_rotate, limit)
        if not photos:
            raise UserError("nothing to draw; name images or folders, or a folder of sail extract with --features")
        chosen = choose_backbone(weights, random_weights, max_tiles, msac, project)
        asked = _resolve((models or "sail-tiny").split(","), layers or "-1", resize, max_tokens, chosen)
        columns = [Column(one.title, see(photos, one)) for one in asked]
    else:
        _refuse_beside_features(
            models=models, weights=weights, random_weights=random_weights, msac=msac, project=project
        )
        _refuse_beside_features(max_tiles=max_tiles, resize=resize, max_tokens=max_tokens, exif_rotate=exif_rotate)
        photos, column, count = _read_stored(FeatureFolder(features), images, layers, limit)
        columns = [column]
    scores, masks = _analyse(columns, foreground is not None, threshold)
    if is_numbers(path):
        _save(scores, photos, columns, path)
    else:
        draw_columns(scores, masks, photos, columns, path, smooth, dpi)
    rest = f", the first of {count:,}; --limit takes more" if count > len(photos) else ""
    names = ", ".join(sorted({photo.name for photo in photos})) if len(photos) <= 3 else f"{len(photos)} images"
    print(f"wrote {out}: {sum(map(len, scores))} x {names}{rest}")
    return 0


def _read_foreground(text: str | None) -> float | None:
    if text in (None, "pc1"):
        return None
    try:
        threshold = float(text or "")
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise UserError(f"--foreground {text} is not understood; use pc1, or a share from 0 to 1 such as 0.6")
    return threshold


def _refuse_beside_features(**options: object) -> None:
    """Refuses what decides how features are made, where they are made already."""
    given = [name for name, value in options.items() if value not in (None, False, "auto")]
    if given:
        raise UserError(f"--{given[0]} has no effect with --features, which draws what is stored; leave one out")


def _resolve(
    models: Sequence[str], layers: str, resize: str, max_tokens: int | None, chosen: dict[str, Any]
) -> list[FeatureSpec]:
    """Features that are asked of each model; those that need no heavy imports are looked at first."""
    names = [name.strip() for name in models]
    ordered = sorted(set(names), key=lambda name: (not family_of(name).is_light, name))
    known = {name: resolve_features(name, layers, resize, max_tokens, **chosen)[1] for name in ordered}
    return [known[name] for name in names]


def _read_stored(
    folder: FeatureFolder, names: Sequence[str] | None, layers: str | None, limit: int
) -> tuple[list[Photo], Column, int]:
    """Images of a folder of features, what is stored of them, and how many there are."""
    if folder.is_pooled:
        raise UserError(f"{folder.folder} holds one vector per image, and no grids; extract with --pool none")
    stored = folder.layers if layers is None else _stored_layers(folder, layers)
    entries = list(folder.entries[:limit])
    count = len(folder.entries)
    if names:
        known = {entry.path: entry for entry in folder.entries}
        missing = [name for name in names if name not in known]
        if missing:
            raise UserError(f"{folder.folder} has no features of {missing[0]}; there is, for one, {next(iter(known))}")
        entries, count = [known[name] for name in names[:limit]], len(names)
    if not entries:
        raise UserError(f"{folder.folder} has features of no image")
    photos, seen = [], []
    for entry in entries:
        photos.append(_stored_photo(folder, entry.path, entry.image_size))
        grids = {layer: np.asarray(folder.read(entry, layer), np.float32) for layer in stored}
        # What the model saw is not drawn, only where its patches lie in the image.
        seen.append(Seen(Geometry(entry.image_size, entry.image_size, entry.grid), grids))
    return photos, Column(folder.spec.title or str(folder.folder), seen), count


def _stored_layers(folder: FeatureFolder, layers: str) -> list[int]:
    try:
        asked = [int(layer) for layer in layers.split(",")]
    except ValueError:
        asked = []
    if not asked or not set(asked) <= set(folder.layers):
        stored = ", ".join(map(str, folder.layers))
        raise UserError(f"--layers {layers}: {folder.folder} holds layers {stored}; use some of them, such as {stored}")
    return asked


def _stored_photo(folder: FeatureFolder, name: str, size: tuple[int, int]) -> Photo:
    """The image that features were extracted from, white where it is no longer to be found."""
    path = Path(folder.settings.get("root", "")) / name
    try:
        image, _ = read_image(path, folder.spec.exif_rotate)
    except ImageError:
        image = None
    if image is None or (image.height, image.width) != size:
        print(f"{path} is not the image that was extracted; its place stays white", file=sys.stderr)
        image = Image.new("RGB", size[::-1], "white")
    return Photo(name, image)


def _analyse(
    columns: Sequence[Column], only_foreground: bool, threshold: float | None
) -> tuple[list[list[list[Array]]], list[list[Array]] | None]:
    """Scores per model, layer and image, and which patches are foreground, if that was asked for."""
    grids = [[[seen.grids[layer] for seen in column.seen] for layer in column.layers] for column in columns]
    if not only_foreground:
        return sheet_scores(grids), None
    masks = []
    for layers in grids:
        deepest = common_scores(layers)[-1]
        masks.append(foreground_masks([grid[..., 0] for grid in deepest], threshold))
    return sheet_scores(grids, masks), masks


def _save(scores: list[list[list[Array]]], photos: Sequence[Photo], columns: Sequence[Column], out: Path) -> None:
    arrays = {
        f"{index}/{photo.name}/{column.title}/layer{layer}": scores[model][place][index]
        for index, photo in enumerate(photos)
        for model, column in enumerate(columns)
        for place, layer in enumerate(column.layers)
    }
    save_numbers(arrays, (len(photos), len(arrays) // len(photos)), out)


def draw_columns(
    scores: list[list[list[Array]]],
    masks: list[list[Array]] | None,
    photos: Sequence[Photo],
    columns: Sequence[Column],
    out: Path,
    smooth: bool = False,
    dpi: int = DPI,
) -> None:
    """Draws a sheet with a row per image, and a column for each layer of each model.

    Args:
        scores: What `sheet_scores` gives for these columns.
        masks: For each model which patches of each image are drawn; all by default.
        photos: The images.
        columns: Features of the models on them.
        out: The picture.
        smooth: Whether to interpolate between patches.
        dpi: Pixels per inch.
    """
    pictures = sum(map(len, scores)) + 1
    beside = max(1, math.ceil(math.sqrt(len(photos) / 2))) if pictures == 2 else 1
    side = panel_side(min(_LARGEST, max(_SMALLEST, _WIDTH / (pictures * beside))), dpi)
    colors = as_colors(scores, masks)
    rows: list[list[Panel | None]] = []
    for index, photo in enumerate(photos):
        pixels = photo.pixels(side)
        height, width = photo.image.height, photo.image.width
        panels: list[Panel | None] = [Panel(pixels, photo.name, f"{width}x{height}")]
        for model, column in enumerate(columns):
            mask = None if masks is None else masks[model][index]
            note = "grid {}x{}".format(*column.seen[index].geometry.grid)
            panels += [Panel(_paint(one[index], mask, pixels, smooth), note=note) for one in colors[model]]
        rows = [*rows, panels] if index % beside == 0 else [*rows[:-1], [*rows[-1], *panels]]
    headings = [("",), *_headings(scores, masks, columns)] * beside
    draw_sheet(Sheet(rows, headings=headings), out, dpi)


def _headings(
    scores: list[list[list[Array]]], masks: list[list[Array]] | None, columns: Sequence[Column]
) -> list[tuple[str, str]]:
    """Model, layer and how much of the variance is shown, for each column."""
    headings = []
    for model, column in enumerate(columns):
        for layer, grids in zip(column.layers, scores[model], strict=True):
            share = explained(grids, None if masks is None else masks[model])
            headings.append((column.title, f"layer {layer}, {share:.0%} of variance"))
    return headings


def _paint(colors: Array, mask: Array | None, photo: Array, smooth: bool) -> Array:
    """Colors of patches at the size of a photograph, which shows faintly where there is no foreground."""
    size = photo.shape[:2]
    painted = to_bytes(enlarge(colors, size, smooth))
    return painted if mask is None else blend(faint(photo), painted, enlarge(mask, size, smooth=False))
