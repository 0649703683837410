"""Pictures of features."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sail_encoder.errors import UserError
from sail_encoder.pixels import Array
from sail_encoder.store.refusals import explain_refusals

if TYPE_CHECKING:
    from torch import Tensor


def pca(
    image: str,
    out: str = "pca.png",
    model: str = "sail-tiny",
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
        model: sail-tiny, a folder, a Hub name such as ByteDance-Seed/SAIL-7B, or timm/NAME.
        layer: Block to take features from; negatives count from the end.
        resize: The model's own rule (auto), native, a side such as 224, or 448x672.
        max_tokens: Patches at most under the native rule; by default the model's own.
        exif_rotate: Whether to turn a photograph upright as its EXIF orientation says.

    Returns:
        Exit status 0.
    """
    from sail_encoder.loading import load_backbone
    from sail_encoder.pixels import read_image

    check_picture(Path(out))
    backbone = load_backbone(model)
    rule = backbone.resize.override(resize, max_tokens)
    picture, _ = read_image(image, exif_rotate)
    features = backbone.encode([picture], layers=layer, resize=rule)[0]
    components = pca_rgb(features.grid)
    save_picture(beside(np.asarray(picture), components), Path(out))
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


def beside(picture: Array, colors: Array, gap: int = 8) -> Image.Image:
    """A picture [height, width, 3] and, to its right, patch colors [nh, nw, 3] enlarged to its size, sharp-edged."""
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (2 * width + gap, height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    enlarged = Image.fromarray(colors).resize((width, height), Image.Resampling.NEAREST)
    canvas.paste(enlarged, (width + gap, 0))
    return canvas


def check_picture(out: Path) -> None:
    """Makes sure that a path names a kind of picture that can be written.

    Raises:
        UserError: If it does not.
    """
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"--out {out} names no kind of picture that can be written; use one such as {out.stem}.png")


def save_picture(picture: Image.Image, out: Path) -> None:
    """Writes a picture, making its folder.

    Raises:
        StoreError: If the disk is full, or does not take the file.
    """
    with explain_refusals(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
