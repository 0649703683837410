"""Options of the commands that say at which size and in which parts images are looked at."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sail_encoder.backbones.registry import describe
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.io.devices import check_device
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import TIMM

if TYPE_CHECKING:
    from heads.dense.inference import Inference
    from heads.dense.registry import Fit, TrainedHead


HIGHEST_SCALE = 16


def whole_patches(option: str, text: str, patch_size: int) -> Size:
    """Reads `448` or `448x672` as (height, width) in pixels.

    Raises:
        UserError: If patches do not tile it.
    """
    try:
        rule = Resize.parse(text)
        if rule.fixed is None:
            raise UserError(f"'{text}' is not understood; use a side such as 224, or 448x672")
        rule.grid(rule.fixed, patch_size)
    except UserError as error:
        raise UserError(f"--{option}: {error}") from None
    return rule.fixed


def read_windows(window: str | int | None, stride: int | None, patch_size: int) -> tuple[Size | None, Size | None]:
    """Reads the options of sliding inference; the stride is two thirds of the window where it is left out.

    Raises:
        UserError: If they do not fit each other, or patches do not tile the window.
    """
    if window is None:
        if stride is not None:
            raise UserError(f"--stride {stride} needs a --window; give one too, or leave it out")
        return None, None
    size = whole_patches("window", str(window), patch_size)
    if stride is not None and not 1 <= stride <= min(size):
        raise UserError(f"--stride cannot be {stride}; allowed is 1 to {min(size)}, the side of the window")
    return size, (stride, stride) if stride else (size[0] * 2 // 3, size[1] * 2 // 3)


def check_scales(scales: Sequence[float]) -> None:
    """Makes sure that factors on the size of images are possible.

    Raises:
        UserError: If one is not.
    """
    if not scales or min(scales) <= 0 or max(scales) > HIGHEST_SCALE:
        raise UserError(
            f"--scales cannot be {list(scales)}; give factors above 0 and up to {HIGHEST_SCALE}, such as "
            "[0.75,1.0,1.25]"
        )


def check_inference(
    backbone: str, window: str | int | None, stride: int | None, scales: Sequence[float], device: str
) -> None:
    """Finds what is wrong with how a head is asked to look at images, before torch is imported.

    What depends on the patches of a timm model, only timm knows; that is found later.

    Args:
        backbone: Name of the backbone.
        window: As in `inference_of`.
        stride: As in `inference_of`.
        scales: As in `inference_of`.
        device: Where it is to run.

    Raises:
        UserError: If something is not possible, or there is no such backbone.
    """
    check_scales(scales)
    check_device(device)
    if not backbone.startswith(TIMM):
        patch_size = describe(backbone).patch_size
        if window not in (None, "whole"):
            read_windows(window, stride, patch_size)


def inference_of(
    trained: "TrainedHead",
    patch_size: int,
    window: str | int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fit: "Fit | None" = None,
) -> "Inference":
    """Way in which a head looks at images: as it was trained to, unless the options say otherwise.

    Args:
        trained: The head.
        patch_size: Side of a patch in pixels.
        window: Windows in pixels, `whole` for none, None for those of the head.
        stride: How far a window is from the next, None for that of the head.
        scales: Factors on the size.
        flip: Whether to look at the mirrored image too.
        fit: How images are brought to whole patches, None for the way of the head.

    Raises:
        UserError: If an option is not possible.
    """
    from heads.dense.inference import Inference

    check_scales(scales)
    if window is None and stride is None:
        windows = (trained.window, trained.stride)
    elif window is None and trained.window is not None:
        windows = read_windows("x".join(map(str, trained.window)), stride, patch_size)
    else:
        windows = read_windows(None if window == "whole" else window, stride, patch_size)
    return Inference(trained.source.size, *windows, scales=tuple(scales), flip=flip, fit=fit or trained.fit)


HIGHEST_SEED = 2**63 - 1
"""The highest that PyTorch and NumPy both take."""


def check_range(option: str, value: int, least: int, most: int | None = None) -> None:
    """Refuses a whole number that an option does not allow.

    Raises:
        UserError: If it is below `least` or above `most`.
    """
    if value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"--{option} cannot be {value}; allowed is {allowed}")


def check_folder(option: str, folder: str | None) -> None:
    """Refuses a folder that could not be made or written to, before any work is lost to it.

    Raises:
        UserError: If a file is in its place, or it may not be written.
    """
    if folder is None:
        return
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"--{option} cannot be {folder}, because {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"--{option} cannot be {folder}, because {nearest} may not be written; name another folder")
