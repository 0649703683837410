"""`sail pca`: principal components of features as colors, for images, layers and models on one sheet."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sail_encoder.backbones.registry import check_features, choose_backbone, family_of, resolve_features
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.commands.drawing import check_drawing, is_numbers, read_photos, see
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.io.errors import ImageError, UserError, require_positive
from sail_encoder.pictures.canvas import DPI, save_numbers
from sail_encoder.pictures.component_sheets import LayerGrids, draw_component_sheet
from sail_encoder.pictures.components import common_scores, foreground_masks, sheet_scores
from sail_encoder.pictures.overlays import Photo
from sail_encoder.store.reading import FeatureFolder


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
        seen = [(one.title, see(photos, one)) for one in asked]
    else:
        _refuse_beside_features(
            models=models, weights=weights, random_weights=random_weights, msac=msac, project=project
        )
        _refuse_beside_features(max_tiles=max_tiles, resize=resize, max_tokens=max_tokens, exif_rotate=exif_rotate)
        photos, stored, count = _read_stored(FeatureFolder(features), images, layers, limit)
        seen = [stored]
    scores, masks = _analyse([layers for _, layers in seen], foreground is not None, threshold)
    if is_numbers(path):
        _save(scores, photos, seen, path)
    else:
        draw_component_sheet(scores, masks, photos, seen, path, smooth, dpi)
    rest = f", the first of {count:,}; --limit takes more" if count > len(photos) else ""
    names = ", ".join(sorted({name for name, _ in photos})) if len(photos) <= 3 else f"{len(photos)} images"
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
) -> tuple[list[Photo], tuple[str, LayerGrids], int]:
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
    photos = [_stored_photo(folder, entry.path, entry.image_size) for entry in entries]
    grids = {layer: [np.asarray(folder.read(entry, layer), np.float32) for entry in entries] for layer in stored}
    return photos, (folder.spec.title or str(folder.folder), grids), count


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
    return name, image


def _analyse(
    models: Sequence[LayerGrids], only_foreground: bool, threshold: float | None
) -> tuple[list[list[list[Array]]], list[list[Array]] | None]:
    """Scores per model, layer and image, and which patches are foreground, if that was asked for."""
    grids = [list(layers.values()) for layers in models]
    if not only_foreground:
        return sheet_scores(grids), None
    masks = []
    for layers in grids:
        deepest = common_scores(layers)[-1]
        masks.append(foreground_masks([grid[..., 0] for grid in deepest], threshold))
    return sheet_scores(grids, masks), masks


def _save(
    scores: list[list[list[Array]]], photos: Sequence[Photo], seen: Sequence[tuple[str, LayerGrids]], out: Path
) -> None:
    arrays = {
        f"{index}/{name}/{title}/layer{layer}": scores[model][place][index]
        for index, (name, _) in enumerate(photos)
        for model, (title, layers) in enumerate(seen)
        for place, layer in enumerate(layers)
    }
    save_numbers(arrays, (len(photos), len(arrays) // len(photos)), out)
