"""Answers to a file of questions: in batches, in order, resumable."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sail_encoder.chat.conversation import Chat, Sampling, check_prompt
from sail_encoder.errors import ImageError, UserError
from sail_encoder.interrupt import Interrupt
from sail_encoder.pixels import read_image
from sail_encoder.store.line_log import LineLog


@dataclass(frozen=True)
class Query:
    """One line of the input: a prompt, and an image if there is one."""

    prompt: str
    image: str | None = None


def answer_file(chat: Chat, source: Path, target: Path, sampling: Sampling, batch_size: int) -> int:
    """Answers every line of `source` in `target`; run again, it goes on behind the last answer.

    Args:
        chat: Model and processor.
        source: JSON lines with `prompt` and, if there is one, `image`, a path relative to this file.
        target: JSON lines with the same and `answer`, or `error` where the image cannot be read.
        sampling: How answers are chosen.
        batch_size: Questions that are answered together.

    Returns:
        Exit status: 0 done, 1 done with errors recorded, 130 or 143 stopped by a signal.

    Raises:
        UserError: If a line is not understood, or `target` answers other questions.
    """
    queries = read_queries(source)
    stop = threading.Event()
    with LineLog(target) as log:
        answered = log.read()
        _check_same_questions(queries, answered, target)
        failed = sum("error" in line for line in answered)
        bar = tqdm(total=len(queries), initial=len(answered), unit="answer", disable=None)
        with bar, Interrupt(stop.set) as interrupt:
            for start in range(len(answered), len(queries), batch_size):
                results = answer_together(chat, queries[start : start + batch_size], source.parent, sampling)
                for query, result in zip(queries[start:], results, strict=False):
                    log.append({**asdict(query), **result})
                failed += sum("error" in result for result in results)
                bar.update(len(results))
                if stop.is_set():
                    break
    return interrupt.status or int(failed > 0)


def read_queries(source: Path) -> list[Query]:
    """Reads the questions.

    Raises:
        UserError: If the file does not exist or a line is not understood.
    """
    if not source.is_file():
        raise UserError(f'no file {source}; write one question a line, such as {{"image": "a.jpg", "prompt": "..."}}')
    queries = []
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            queries.append(_parse(line, f"{source} line {number}"))
    if not queries:
        raise UserError(f"{source} holds no questions")
    return queries


def _parse(line: str, where: str) -> Query:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise UserError(f'{where} has no "prompt"')
    try:
        check_prompt(fields["prompt"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    image = fields.get("image")
    if image is not None and not isinstance(image, str):
        raise UserError(f'{where}: "image" is not a path')
    return Query(fields["prompt"], image)


def _check_same_questions(queries: Sequence[Query], answered: Sequence[dict[str, Any]], target: Path) -> None:
    for number, (line, query) in enumerate(zip(answered, queries, strict=False), 1):
        if (line.get("prompt"), line.get("image")) != (query.prompt, query.image):
            raise UserError(f"{target} line {number} answers another question; use another --output")
    if len(answered) > len(queries):
        raise UserError(f"{target} has more answers than there are questions; use another --output")


def answer_together(chat: Chat, queries: Sequence[Query], folder: Path, sampling: Sampling) -> list[dict[str, str]]:
    """Answers questions in one batch.

    Args:
        chat: Model and processor; its own conversation is not touched.
        queries: The questions.
        folder: What relative image paths start from.
        sampling: How answers are chosen.

    Returns:
        For each question `answer`, or `error`.
    """
    results: list[dict[str, str]] = []
    conversations = []
    for query in queries:
        try:
            images = [] if query.image is None else [{"type": "image", "image": read_image(folder / query.image)[0]}]
        except ImageError as error:
            results.append({"error": str(error)})
            continue
        results.append({})
        conversations.append([{"role": "user", "content": [*images, {"type": "text", "text": query.prompt}]}])
    answers = iter(_answer_or_tell(chat, conversations, sampling))
    return [result or next(answers) for result in results]


Conversation = list[dict[str, Any]]


def _answer_or_tell(chat: Chat, conversations: list[Conversation], sampling: Sampling) -> list[dict[str, str]]:
    """Answers; where one prompt is too long for the model, the others are answered one by one."""
    if not conversations:
        return []
    try:
        return [{"answer": answer} for answer in _generate(chat, conversations, sampling)]
    except UserError as error:
        if len(conversations) == 1:
            return [{"error": str(error)}]
    return [result for one in conversations for result in _answer_or_tell(chat, [one], sampling)]


def _generate(chat: Chat, conversations: list[Conversation], sampling: Sampling) -> list[str]:
    inputs = chat.processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    ).to(chat.model.device)
    chat.check_room(inputs["input_ids"].shape[1] + 1)
    with torch.no_grad():
        output = chat.model.generate(**inputs, **sampling.options, pad_token_id=chat.processor.tokenizer.pad_token_id)
    texts = chat.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
