"""`sail chat`: questions about images, one, a conversation, or a file of them."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from sail_encoder.backbones.descriptions import describe_sail
from sail_encoder.backbones.registry import announce, check_features
from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.fingerprint import fingerprint_checkpoint
from sail_encoder.chat.questions import check_prompt, read_queries
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.decoding import read_image
from sail_encoder.io.devices import check_device, choose_device, choose_dtype
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.hub import find_checkpoint


def chat(
    image: str | None = None,
    prompt: str | None = None,
    input: str | None = None,
    output: str | None = None,
    model: str = "sail-tiny",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    sliding_window: int | Literal["config", "none"] = "config",
    batch_size: int = 8,
    overwrite: bool = False,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> int:
    """Answers questions about images.

    With an image and a prompt the answer is printed. Without a prompt a conversation begins. With --input and --output
    a file of questions is answered; a killed run goes on where it was, and what ended in an error is tried again.

    Args:
        image: The image file.
        prompt: The question.
        input: JSON lines with "prompt" and, if there is one, "image", a path relative to this file.
        output: Where the answers to --input go, as JSON lines.
        model: sail-tiny, a folder, or a Hub name such as ByteDance-Seed/SAIL-7B.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token each time; higher values sample more freely.
        top_p: Sample among the likeliest tokens that together have this probability.
        max_tokens: Patches of an image at most; by default the model's own limit.
        sliding_window: How far back text sees: as the model's configuration says (config), all the way (none), or this
            many tokens. A window of 4,096, as in Mistral-7B, hides the first rows of an image of as many patches.
        batch_size: With --input, questions that are answered together.
        overwrite: Whether to drop the answers that --output holds, rather than go on behind them.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: Precision of weights and computation; auto is bfloat16 on a GPU and float32 on a CPU.

    Returns:
        Exit status: 0 done, 1 done with errors recorded, 130 or 143 stopped by a signal.
    """
    _check(image, prompt, input, output, batch_size)
    _check_model(model, device, max_tokens, sliding_window)
    sampling = Sampling(max_new_tokens, temperature, top_p)
    queries = None if input is None else read_queries(Path(input))
    if prompt is not None:
        check_prompt(prompt)
    picture = None if image is None else read_image(image)[0]
    announce(model)
    from sail_encoder.chat.batch import answer_all
    from sail_encoder.chat.conversation import load_chat
    from sail_encoder.chat.terminal import answer_streamed, converse

    load = partial(load_chat, model, device, precision, max_tokens, sliding_window)
    if queries is not None and input is not None and output is not None:
        dtype = str(choose_dtype(precision, choose_device(device))).removeprefix("torch.")
        views = {"max_tokens": max_tokens, "sliding_window": sliding_window}
        weights = fingerprint_checkpoint(find_checkpoint(model))
        settings = {"model": model, "weights": weights, **asdict(sampling), **views, "precision": dtype}
        # What can be wrong with the file of answers is found before the model is loaded.
        with AnswerFile(Path(output), queries, settings, overwrite) as answers:
            return answer_all(load(), answers, Path(input).parent, sampling, batch_size)
    conversation = load()
    if picture is not None:
        conversation.look(picture)
    if prompt is None:
        return converse(conversation, sampling)
    return answer_streamed(conversation, prompt, sampling)


def _check_model(model: str, device: str, max_tokens: int | None, sliding_window: int | str) -> None:
    check_device(device)
    check_features("all", "auto", max_tokens)
    if isinstance(sliding_window, int):
        require_positive("sliding_window", sliding_window)
    describe_sail(model)


def _check(image: str | None, prompt: str | None, input: str | None, output: str | None, batch_size: int) -> None:
    if (input is None) != (output is None):
        raise UserError("--input and --output go together")
    if input is not None and (image is not None or prompt is not None):
        raise UserError(f"IMAGE and PROMPT do not go with --input; write them as a line of {input}, or leave it out")
    if input is not None and output is not None and Path(input).resolve() == Path(output).resolve():
        raise UserError(f"--input and --output are both {input}; use another --output")
    require_positive("batch_size", batch_size)
