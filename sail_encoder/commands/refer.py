"""`sail segment refer`: masks of what an expression refers to."""

from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
from PIL import Image

from sail_encoder.backbones.registry import announce
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.io.devices import check_device, choose_device, choose_dtype
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.files import read_json, replacing, write_json
from sail_encoder.io.refusals import check_writable, explain_refusals
from sail_encoder.models.pixel_sail.published import read_config
from sail_encoder.models.pixel_sail.questions import check_question
from sail_encoder.models.pixel_sail.questions import refer as refer_to
from sail_encoder.models.pixel_sail.regions import read_region
from sail_encoder.pictures.masks import overlay_masks

ANSWER, OVERLAY = "answer.json", "overlay.png"


def refer(
    image: str,
    expression: str,
    out: str,
    model: str,
    region: str | None = None,
    max_new_tokens: int = 512,
    exif_rotate: bool = False,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    overwrite: bool = False,
) -> int:
    """Writes masks of what an expression refers to.

    A Pixel-SAIL answers. The folder gets mask_0.png and so on, one per [SEG] in the answer, of the image's size with
    255 inside and 0 outside, overlay.png with all of them over the image, and answer.json with the answer.

    Args:
        image: The image file.
        expression: What to segment, such as "the red circle".
        out: Folder to write; must not exist, or be empty.
        model: A folder or a Hub name with a Pixel-SAIL; none is published, see docs/pixel-sail.md.
        region: A region that the expression names as <Prompt0>, such as "the ball beside <Prompt0>": a box x0,y0,x1,y1
            in pixels, or a mask of the image's size, a picture that is not zero inside.
        max_new_tokens: Longest answer.
        exif_rotate: Whether to turn a photograph upright as its EXIF orientation says.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of the model; auto is bfloat16 on a GPU and float32 on a CPU.
        overwrite: Whether to replace an earlier answer in the folder.

    Returns:
        Exit status 0.
    """
    question, folder = refer_to(expression), Path(out)
    check_question(question, region is not None)
    check_device(device)
    require_positive("max_new_tokens", max_new_tokens)
    earlier = _check_folder(folder, overwrite)
    picture, _ = read_image(image, exif_rotate)
    inside = None if region is None else read_region(region, (picture.height, picture.width))
    read_config(model)
    answer, masks = _ask(model, device, precision, picture, question, inside, max_new_tokens)
    asked = {"image": image, "expression": expression, "region": region, "model": model, "answer": answer}
    with explain_refusals(folder, "give the same command again"):
        _write(folder, picture, masks, asked, earlier)
    print(f"{answer}\nwrote {out}: {len(masks)} {'mask' if len(masks) == 1 else 'masks'} of {image}")
    return 0


def _ask(
    model: str,
    device: str,
    precision: str,
    picture: Image.Image,
    question: str,
    inside: Array | None,
    max_new_tokens: int,
) -> tuple[str, Array]:
    """The answer of a model, and its masks, bool [q, height, width].

    Raises:
        CheckpointError: If the model cannot be loaded.
        UserError: If there is no mask in the answer, or no room for one.
    """
    announce(model)
    from sail_encoder.models.pixel_sail.answering import answer_with_masks
    from sail_encoder.models.pixel_sail.checkpoint import load_pixel_sail

    where = choose_device(device)
    network, processor = load_pixel_sail(model, where, choose_dtype(precision, where))
    answer, masks = answer_with_masks(network, processor, picture, question, inside, max_new_tokens=max_new_tokens)
    if not len(masks):
        said = shorten(answer, 80, placeholder=" ...")
        raise UserError(f"the answer holds no [SEG], so there is no mask: '{said}'; word the expression otherwise")
    return answer, masks


def _check_folder(folder: Path, overwrite: bool) -> set[str]:
    """Names of the files of an earlier answer, which may be replaced.

    Raises:
        UserError: If the folder holds anything else, or an earlier answer that is not to be replaced.
    """
    check_writable(folder)
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not found:
        return set()
    earlier = _files_of_answer(folder / ANSWER)
    if foreign := sorted(found - earlier):
        raise UserError(f"{folder} holds {foreign[0]}, which is no answer of this command; name another folder")
    if not overwrite:
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


def _write(folder: Path, picture: Image.Image, masks: Array, asked: dict[str, Any], earlier: set[str]) -> None:
    """Writes the answer, the masks, and what they look like, in place of the files of an earlier answer."""
    names = [_mask_name(index) for index in range(len(masks))]
    size = {"height": picture.height, "width": picture.width}
    described = [{"file": name, **_describe(mask)} for name, mask in zip(names, masks, strict=True)]
    # The answer comes first, so that a later command knows the files even if this one is killed.
    write_json(folder / ANSWER, {**asked, "image_size": size, "masks": described})
    for name, mask in zip(names, masks, strict=True):
        _save(Image.fromarray(mask.astype(np.uint8) * 255), folder / name)
    _save(Image.fromarray(overlay_masks(np.asarray(picture), masks)), folder / OVERLAY)
    for name in earlier - {ANSWER, OVERLAY, *names}:
        (folder / name).unlink(missing_ok=True)


def _describe(mask: Array) -> dict[str, Any]:
    """Pixels of a mask, and the box (x0, y0, x1, y1) around them, null where it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None
    return {"pixels": int(mask.sum()), "box": box and [int(edge) for edge in box]}


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")
