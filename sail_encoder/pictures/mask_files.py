"""Folders of masks: an answer, a picture of each of its masks, and all of them over the image."""

from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sail_encoder.images.decoding import Array
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import read_json, replacing, unfinished_name, write_json
from sail_encoder.io.refusals import check_writable
from sail_encoder.pictures.masks import overlay_masks

ANSWER, OVERLAY = "answer.json", "overlay.png"


def check_mask_folder(folder: Path, overwrite: bool) -> set[str]:
    """Names of the files of an earlier answer, finished or not, which may be replaced.

    Raises:
        UserError: If the folder holds anything else, or an earlier answer that is not to be replaced.
    """
    check_writable(folder)
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not found:
        return set()
    earlier = _files_of_answer(folder / ANSWER)
    earlier |= {unfinished_name(name) for name in (ANSWER, *earlier)}
    if foreign := sorted(found - earlier):
        raise UserError(f"{folder} holds {foreign[0]}, which is no answer of this command; name another folder")
    if not overwrite and ANSWER in found:
        raise UserError(f"{folder} holds an earlier answer; name another folder, or use --overwrite")
    return earlier


def _files_of_answer(path: Path) -> set[str]:
    """Names of the files that an earlier answer has in its folder; none where there is no such answer."""
    try:
        answer = read_json(path)
        return {ANSWER, OVERLAY, *(_mask_name(index) for index in range(len(answer["masks"])))}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _mask_name(index: int) -> str:
    return f"mask_{index}.png"


def next_folder(folder: Path) -> Path:
    """The first of the folders 1, 2 and so on in a folder that does not exist yet."""
    return next(path for number in count(1) if not (path := folder / str(number)).exists())


def count_masks(number: int) -> str:
    """So many masks, in words."""
    return f"{number} {'mask' if number == 1 else 'masks'}"


def write_masks(
    folder: Path,
    masks: Array,
    asked: Mapping[str, Any],
    picture: Image.Image | None = None,
    earlier: Collection[str] = (),
) -> None:
    """Writes an answer and its masks, in place of the files of an earlier answer.

    Args:
        folder: Where to; made if need be.
        masks: bool [q, height, width], which become mask_0.png and so on, 255 inside.
        asked: The answer, and what it is an answer to, for answer.json.
        picture: The image, for overlay.png.
        earlier: Names of the files of the earlier answer, see `check_mask_folder`.
    """
    names = [_mask_name(index) for index in range(len(masks))]
    size = {"height": masks.shape[1], "width": masks.shape[2]}
    described = [{"file": name, **_describe(mask)} for name, mask in zip(names, masks, strict=True)]
    # Wherever this is killed, the answer that is there says what the masks beside it are, and that they are its own.
    for name in set(earlier) - {ANSWER}:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / ANSWER, {**asked, "image_size": size, "masks": described})
    for name, mask in zip(names, masks, strict=True):
        _save(Image.fromarray(mask.astype(np.uint8) * 255), folder / name)
    if picture is not None:
        _save(Image.fromarray(overlay_masks(np.asarray(picture), masks)), folder / OVERLAY)


def _describe(mask: Array) -> dict[str, Any]:
    """Pixels of a mask, and the box (x0, y0, x1, y1) around them, null where it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None
    return {"pixels": int(mask.sum()), "box": box and [int(edge) for edge in box]}


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")
