"""`sail segment refer`: masks of what an expression refers to."""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

from PIL import Image

from sail_encoder.backbones.registry import announce
from sail_encoder.chat.families import PIXEL_SAIL, find_chat
from sail_encoder.chat.questions import check_prompt
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.io.devices import check_device
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.hub import TINY
from sail_encoder.io.refusals import explain_refusals
from sail_encoder.models.pixel_sail.questions import check_region
from sail_encoder.models.pixel_sail.questions import refer as refer_to
from sail_encoder.models.pixel_sail.regions import read_region
from sail_encoder.pictures.mask_files import check_mask_folder, count_masks, write_masks

if TYPE_CHECKING:
    from sail_encoder.chat.engine import Answer


def refer(
    image: str,
    expression: str,
    out: str,
    model: str = TINY,
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
        model: sail-tiny, or a folder or a Hub name with a Pixel-SAIL; none is published, see docs/pixel-sail.md.
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
    check_prompt(question, PIXEL_SAIL.placeholders)
    check_region(question, region is not None)
    check_device(device)
    require_positive("max_new_tokens", max_new_tokens)
    earlier = check_mask_folder(folder, overwrite)
    picture, _ = read_image(image, exif_rotate)
    inside = None if region is None else read_region(region, (picture.height, picture.width))
    find_chat(model).family.require_masks()
    answer = _ask(model, device, precision, picture, question, inside, max_new_tokens)
    asked = {"image": image, "expression": expression, "region": region, "model": model, "answer": answer.text}
    with explain_refusals(folder, "give the same command again with --overwrite"):
        write_masks(folder, answer.masks, asked, picture, earlier)
    print(f"{answer}\nwrote {out}: {count_masks(len(answer.masks))} of {image}")
    return 0


def _ask(
    model: str,
    device: str,
    precision: str,
    picture: Image.Image,
    question: str,
    inside: Array | None,
    max_new_tokens: int,
) -> "Answer":
    """The answer of a model, with at least one mask.

    Raises:
        CheckpointError: If the model cannot be loaded.
        UserError: If there is no mask in the answer, or no room for one.
    """
    announce(model)
    from sail_encoder.chat.conversation import load_chat

    answer = load_chat(model, device, precision).ask(question, picture, Sampling(max_new_tokens), region=inside)
    if not len(answer.masks):
        said = shorten(answer, 80, placeholder=" ...")
        raise UserError(f"the answer holds no [SEG], so there is no mask: '{said}'; word the expression otherwise")
    return answer
