"""Answers to many questions, in batches and in order."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.feature_extraction_utils import BatchFeature

from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.conversation import Chat, Sampling
from sail_encoder.chat.questions import Query
from sail_encoder.errors import ImageError, UserError
from sail_encoder.interrupt import Interrupt
from sail_encoder.pixels import read_image


def answer_all(chat: Chat, answers: AnswerFile, folder: Path, sampling: Sampling, batch_size: int) -> int:
    """Answers the questions that have no answer yet.

    Args:
        chat: Model and processor; its own conversation is not touched.
        answers: Holds the questions, and takes the answers.
        folder: What relative image paths start from.
        sampling: How answers are chosen.
        batch_size: Questions that are answered together.

    Returns:
        Exit status: 0 done, 1 done with errors recorded, 130 or 143 stopped by a signal.
    """
    stop = threading.Event()
    bar = tqdm(total=len(answers.queries), initial=answers.done, unit="answer", disable=None)
    with bar, Interrupt(stop.set) as interrupt:
        while answers.open_queries and not stop.is_set():
            results = answer_together(chat, answers.open_queries[:batch_size], folder, sampling)
            for result in results:
                answers.append(result)
            bar.update(len(results))
    return interrupt.status or int(answers.failed > 0)


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
    """Answers; where the longest prompt would cut the answers of the others short, one by one."""
    if not conversations:
        return []
    inputs = _tokenize(chat, conversations)
    length = inputs["input_ids"].shape[1]
    if len(conversations) > 1 and length + sampling.max_new_tokens > chat.limit:
        return [result for one in conversations for result in _answer_or_tell(chat, [one], sampling)]
    try:
        options = chat.options_for(length, sampling)
    except UserError as error:
        return [{"error": str(error)}]
    return [{"answer": answer} for answer in _generate(chat, inputs, options)]


def _tokenize(chat: Chat, conversations: list[Conversation]) -> BatchFeature:
    return chat.processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    ).to(chat.model.device)


def _generate(chat: Chat, inputs: BatchFeature, options: dict[str, Any]) -> list[str]:
    with torch.no_grad():
        output = chat.model.generate(**inputs, **options, pad_token_id=chat.processor.tokenizer.pad_token_id)
    texts = chat.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
