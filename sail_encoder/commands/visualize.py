"""Pictures of features."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from sail_encoder.backbones.registry import announce, check_features, choose_weights, load_for, resolve_features
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError
from sail_encoder.io.refusals import check_writable, explain_refusals

if TYPE_CHECKING:
    from torch import Tensor


def pca(
    image: str,
    out: str = "pca.png",
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    layer: str = "-1",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
) -> int:
    """Draws the principal components of an image's features beside it.

    The first three of the patches become red, green and blue: patches of like color have like features.

    Args:
        image: The image file.
        out: Picture to write.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or hf/NAME.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        layer: Block to take features from; negatives count from the end.
        resize: The model's own rule (auto), native, a side such as 224, or 448x672.
        max_tokens: Patches at most under the native rule; by default the model's own.
        exif_rotate: Whether to turn a photograph upright as its EXIF orientation says.

    Returns:
        Exit status 0.
    """
    check_picture(Path(out))
    check_features(layer, resize, max_tokens)
    picture, _ = read_image(image, exif_rotate)
    _, asked = resolve_features(model, layer, resize, max_tokens, **choose_weights(weights, random_weights))
    announce(model)
    features = load_for(asked).encode([picture], layers=asked.layers, resize=asked.size)[0]
    components = enlarge(pca_rgb(features.grid), features.image_size)
    save_picture(side_by_side([np.asarray(picture), components]), Path(out))
    rows, columns = features.grid_size
    print(f"wrote {out}: {rows}x{columns} patches of {image}")
    return 0


def pca_rgb(grid: "Tensor") -> Array:
    """The first three principal components of a grid [nh, nw, C] as colors, uint8 [nh, nw, 3].

    Each component is stretched between its 2nd and 98th percentile, so that single outliers (SAIL has attention sinks)
    do not wash out the rest. The sign of a component is arbitrary; it is chosen so that larger deviations are bright.
    """
    import torch

    patches = grid.flatten(0, 1).float().cpu()
    centered = patches - patches.mean(0)
    count = min(3, *centered.shape)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    scores = centered @ directions[:count].T
    scores = scores * scores.pow(3).sum(0).sign().where(scores.pow(3).sum(0) != 0, torch.ones(count))
    scores = torch.nn.functional.pad(scores, (0, 3 - count))
    low, high = scores.quantile(0.02, 0), scores.quantile(0.98, 0)
    colors = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return (colors * 255).round().byte().unflatten(0, grid.shape[:2]).numpy()


def similarity(
    image: str,
    at: str,
    to: str | None = None,
    out: str = "similarity.png",
    model: str = "sail-tiny",
    weights: str | None = None,
    random_weights: bool = False,
    layer: str = "-1",
    resize: str = "auto",
    max_tokens: int | None = None,
    exif_rotate: bool = False,
) -> int:
    """Draws how similar the patches of an image are to one of them.

    The patch is framed in red. The cosine similarity of the features follows to the right, from dark to bright.

    Args:
        image: The image file.
        at: The patch, as ROW,COLUMN of the grid; negatives count from the end.
        to: Another image, whose patches are compared with that one.
        out: Picture to write.
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, timm/NAME, or hf/NAME.
        weights: For a timm model, a file or folder of weights in place of its published ones.
        random_weights: Whether to leave the weights random; they are the same every time.
        layer: Block to take features from; negatives count from the end.
        resize: The model's own rule (auto), native, a side such as 224, or 448x672.
        max_tokens: Patches at most under the native rule; by default the model's own.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.

    Returns:
        Exit status 0.
    """
    check_picture(Path(out))
    check_features(layer, resize, max_tokens)
    row, column = _read_patch(at)
    pictures = [read_image(one, exif_rotate)[0] for one in (image, to) if one is not None]
    spec, asked = resolve_features(model, layer, resize, max_tokens, **choose_weights(weights, random_weights))
    rows, columns = spec.grid((pictures[0].height, pictures[0].width), asked.size)
    if not (-rows <= row < rows and -columns <= column < columns):
        raise UserError(f"--at {at}: patch ({row}, {column}) is outside the {rows}x{columns} grid")
    announce(model)
    features = load_for(asked).encode(pictures, layers=asked.layers, resize=asked.size)
    box = features[0].patch_box(row, column)
    scores = cosine_similarity(features[0].grid[row, column], features[-1].grid)
    ImageDraw.Draw(pictures[0]).rectangle(box, outline="red", width=2)
    heat = enlarge(heat_rgb(scores), (pictures[-1].height, pictures[-1].width))
    save_picture(side_by_side([*map(np.asarray, pictures), heat]), Path(out))
    print(f"wrote {out}: similarity to patch {row},{column} of {image}, from {scores.min():.2f} to {scores.max():.2f}")
    return 0


def _read_patch(at: str) -> tuple[int, int]:
    try:
        row, column = (int(index) for index in at.split(","))
    except ValueError:
        raise UserError(f"--at {at} is no patch; give its row and column, such as 3,5") from None
    return row, column


def cosine_similarity(patch: "Tensor", grid: "Tensor") -> Array:
    """Cosine similarity of one patch [C] to each patch of a grid [nh, nw, C], as float32 [nh, nw] in [-1, 1]."""
    from torch.nn import functional as F

    return F.cosine_similarity(grid.float(), patch.float(), dim=-1).cpu().numpy()


def heat_rgb(scores: Array) -> Array:
    """Scores [nh, nw] as colors, uint8 [nh, nw, 3]: black for the lowest, then purple, orange, and pale yellow."""
    ramp = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
    share = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    places = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(share, places, ramp[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def enlarge(colors: Array, size: Size) -> Array:
    """Patch colors [nh, nw, 3] at the size of the picture, sharp-edged."""
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.NEAREST))


def side_by_side(pictures: Sequence[Array], gap: int = 8) -> Image.Image:
    """Pictures [height, width, 3], from left to right on white."""
    height = max(len(picture) for picture in pictures)
    canvas = Image.new("RGB", (sum(picture.shape[1] + gap for picture in pictures) - gap, height), "white")
    left = 0
    for picture in pictures:
        canvas.paste(Image.fromarray(picture), (left, 0))
        left += picture.shape[1] + gap
    return canvas


def check_picture(out: Path) -> None:
    """Makes sure that a path names a kind of picture that can be written, in a place that can be written to.

    Raises:
        UserError: If it does not.
    """
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out {out} names no kind of picture that can be written; use one such as {out.stem}.png")
    check_writable(out.parent)


def save_picture(picture: Image.Image, out: Path) -> None:
    """Writes a picture, making its folder.

    Raises:
        StoreError: If the disk is full, or does not take the file.
    """
    with explain_refusals(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
