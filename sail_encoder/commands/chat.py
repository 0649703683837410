"""`sail chat`: questions about images, one, a conversation, or a file of them."""

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sail_encoder.backbones.registry import announce, check_features
from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.families import ChatFamily, chosen_options, find_chat
from sail_encoder.chat.fingerprint import fingerprint_chat
from sail_encoder.chat.questions import check_prompt, read_queries
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.decoding import read_image
from sail_encoder.images.video import FRAMES, is_video, read_frames
from sail_encoder.io.devices import check_device, choose_device, choose_dtype
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.refusals import check_writable
from sail_encoder.models.pixel_sail.questions import check_region
from sail_encoder.models.pixel_sail.regions import read_region
from sail_encoder.pictures.mask_files import check_mask_folder

if TYPE_CHECKING:
    from sail_encoder.chat.conversation import Chat


def chat(
    image: str | None = None,
    prompt: str | None = None,
    input: str | None = None,
    output: str | None = None,
    region: str | None = None,
    masks: str | None = None,
    model: str = "sail-tiny",
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    sliding_window: int | Literal["config", "none"] = "config",
    max_tiles: int | None = None,
    frames: int = FRAMES,
    thinking: bool = False,
    exif_rotate: bool = False,
    batch_size: int = 8,
    overwrite: bool = False,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> int:
    """Answers questions about images.

    With an image and a prompt the answer is printed. Without a prompt a conversation begins. With --input and --output
    a file of questions is answered; a killed run goes on where it was, and what ended in an error is tried again.

    Args:
        image: The image file, or a video for a SAIL-VL.
        prompt: The question.
        input: JSON lines with "prompt" and, if there is one, "image", "images" (a list) or "video", paths relative to
            this file. Other keys, such as an id, are carried into the output.
        output: Where the answers to --input go, as JSON lines.
        region: Pixel-SAIL: a region of the image that the prompt names as <Prompt0>: a box x0,y0,x1,y1 in pixels, or a
            mask of the image's size, a picture that is not zero inside. A line of --input may have a "region" too.
        masks: Pixel-SAIL: folder for the masks of the answer, which must not exist, or be empty; in a conversation each
            answer with masks gets a folder of its own in it.
        model: sail-tiny, a folder, or a Hub name such as ByteDance-Seed/SAIL-7B or BytedanceDouyinContent/SAIL-VL2-2B.
        max_new_tokens: Longest answer in tokens; by default 512 for SAIL, for SAIL-VL 1024, and 4096 with --thinking.
        temperature: 0 takes the likeliest token each time; higher values sample more freely.
        top_p: Sample among the likeliest tokens that together have this probability.
        max_tokens: SAIL: patches of an image at most; by default the model's own limit.
        sliding_window: SAIL: how far back text sees: as the model's configuration says (config), all the way (none), or
            this many tokens. A window of 4,096, as in Mistral-7B, hides the first rows of an image of as many patches.
        max_tiles: SAIL-VL: tiles of an image at most, without the thumbnail; by default the model's own limit.
        frames: SAIL-VL: how many frames of a video to take, evenly spaced.
        thinking: SAIL-VL: whether to end each question with the published request to think before answering.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
        batch_size: With --input, questions that are answered together.
        overwrite: Whether to drop the answers that --output holds, rather than go on after them.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of weights and computation; auto is bfloat16 on a GPU and float32 on a CPU.

    Returns:
        Exit status: 0 done, 1 done with errors recorded, 130 or 143 stopped by a signal.
    """
    _check_use(image, prompt, input, output, region, masks, batch_size, frames)
    _check_views(device, max_tokens, sliding_window, max_tiles)
    source = find_chat(model)
    views = {"max_tokens": max_tokens, "sliding_window": sliding_window}
    others = chosen_options(max_tiles=max_tiles, thinking=thinking)
    source.family.require_options({**chosen_options(**views), **others})
    longest = source.family.longest_answer(thinking) if max_new_tokens is None else max_new_tokens
    sampling = Sampling(longest, temperature, top_p)
    load = partial(_load, model, device, precision, **views, **others, exif_rotate=exif_rotate)
    if input is None or output is None:
        return _talk(load, source.family, image, prompt, sampling, frames, exif_rotate, region, masks)
    queries = read_queries(Path(input), source.family.placeholders, source.family.regions)
    settings = {"model": model, "weights": fingerprint_chat(source), **asdict(sampling), **views, **others}
    settings |= {"precision": str(choose_dtype(precision, choose_device(device))).removeprefix("torch.")}
    settings |= chosen_options(exif_rotate=exif_rotate)
    if any(query.video for query in queries):
        source.family.require_videos()
        settings["frames"] = frames
    # What can be wrong with the file of answers is found before the model is loaded.
    with AnswerFile(Path(output), queries, settings, overwrite) as answers:
        chat = load()
        from sail_encoder.chat.batch import answer_all

        return answer_all(chat, answers, Path(input).parent, sampling, batch_size, frames)


def _check_use(
    image: str | None,
    prompt: str | None,
    input: str | None,
    output: str | None,
    region: str | None,
    masks: str | None,
    batch_size: int,
    frames: int,
) -> None:
    if (input is None) != (output is None):
        raise UserError("--input and --output go together")
    if input is not None and (image is not None or prompt is not None):
        raise UserError(f"IMAGE and PROMPT do not go with --input; write them as a line of {input}, or leave it out")
    if region is not None and image is None:
        wanted = f'write it as "region" into a line of {input}' if input else "give the image too"
        raise UserError(f"--region {region} is one of an image; {wanted}")
    if masks is not None and input is not None:
        raise UserError("--masks goes with IMAGE, not with --input; ask one by one, or use sail segment refer")
    if input is not None and output is not None and os.path.realpath(input) == os.path.realpath(output):
        raise UserError(f"--input and --output are both {input}; use another --output")
    require_positive("batch_size", batch_size)
    require_positive("frames", frames)


def _check_views(device: str, max_tokens: int | None, sliding_window: int | str, max_tiles: int | None) -> None:
    check_device(device)
    check_features("all", "auto", max_tokens)
    if isinstance(sliding_window, int):
        require_positive("sliding_window", sliding_window)
    if max_tiles is not None:
        require_positive("max_tiles", max_tiles)


def _load(model: str, *arguments: Any, **options: Any) -> "Chat":
    announce(model)
    from sail_encoder.chat.conversation import load_chat

    return load_chat(model, *arguments, **options)


def _talk(
    load: Callable[[], "Chat"],
    family: ChatFamily,
    image: str | None,
    prompt: str | None,
    sampling: Sampling,
    frames: int,
    exif_rotate: bool,
    region: str | None,
    masks: str | None,
) -> int:
    """Answers one question, or as many as somebody types; what it is about is read before the model is loaded."""
    if prompt is not None:
        check_prompt(prompt, family.placeholders)
    folder = _check_pixel_options(family, prompt, region, masks)
    watched = image is not None and is_video(image)
    if watched:
        family.require_videos()
        if region is not None:
            raise UserError(f"--region {region} is one of an image, and {image} is a video; leave it out")
    film = read_frames(image, frames) if watched else []
    picture = None if image is None or watched else read_image(image, exif_rotate)[0]
    inside = None if region is None or picture is None else read_region(region, (picture.height, picture.width))
    chat = load()
    from sail_encoder.chat.terminal import answer_streamed, converse

    if film:
        chat.watch(film)
    if picture is not None:
        chat.look(picture, inside)
    if prompt is None:
        return converse(chat, sampling, frames=frames, masks=folder)
    return answer_streamed(chat, prompt, sampling, folder)


def _check_pixel_options(family: ChatFamily, prompt: str | None, region: str | None, masks: str | None) -> Path | None:
    """Makes sure that the model knows regions and masks where they are asked for; returns the folder of the masks."""
    if region is not None:
        family.require_regions()
    if family.regions and prompt is not None:
        check_region(prompt, region is not None)
    if masks is None:
        return None
    family.require_masks()
    folder = Path(masks)
    if prompt is not None:
        check_mask_folder(folder, overwrite=False)
    else:
        check_writable(folder)
    return folder
