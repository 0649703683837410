"""Answers to a file of questions, in batches and in order."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.conversation import Chat, ask_together
from sail_encoder.chat.questions import Query
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.video import FRAMES
from sail_encoder.io.devices import is_out_of_memory
from sail_encoder.io.errors import UserError
from sail_encoder.io.signals import Interrupt
from sail_encoder.models.pixel_sail.regions import Region


def answer_all(
    chat: Chat, answers: AnswerFile, folder: Path, sampling: Sampling | None, batch_size: int, frames: int = FRAMES
) -> int:
    """Answers the questions that have no answer yet.

    Args:
        chat: A loaded model; its own conversation is not touched.
        answers: Holds the questions, and takes the answers.
        folder: What relative paths start from.
        sampling: How answers are chosen.
        batch_size: Questions that are answered together; fewer from where memory does not allow that.
        frames: How many frames of a video to take.

    Returns:
        Exit status: 0 done, 1 done with errors recorded, 130 or 143 stopped by a signal.
    """
    stop, before = threading.Event(), answers.done
    asker = _Asker(chat, folder, sampling, frames)
    bar = tqdm(total=len(answers.queries), initial=answers.done, unit="answer", disable=None)
    with bar, Interrupt(stop.set) as interrupt:
        while (queries := answers.next_queries(batch_size)) and not stop.is_set():
            results = asker.answer(queries)
            if results is None:
                batch_size = len(queries) // 2
                continue
            for result in results:
                answers.append(result)
            bar.update(answers.done - bar.n)
    _report(answers, before, bool(interrupt.status))
    return interrupt.status or int(answers.failed > 0)


def _report(answers: AnswerFile, before: int, stopped: bool) -> None:
    """Says at the end what has been done, and what is left."""
    done, count = answers.done, len(answers.queries)
    print(f"{done:,} of {count:,} answers in {answers.path}, {done - before:,} of them new")
    if answers.failed:
        print(f"{answers.failed:,} of them are errors; the same command asks these questions again", file=sys.stderr)
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)


class _Asker:
    """Asks in batches; what is shown is encoded once for all questions about it that follow each other."""

    def __init__(self, chat: Chat, folder: Path, sampling: Sampling | None, frames: int) -> None:
        self.engine, self.folder, self.sampling, self.frames = chat.engine, folder, sampling, frames
        self._seen: dict[Any, Chat] = {}

    def answer(self, queries: Sequence[Query]) -> list[dict[str, str]] | None:
        """For each question `answer`, or `error`; None where memory does not allow so many together."""
        try:
            return self._answer(queries)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause, so that the error no longer holds on to the tensors that did not fit.
        self._seen = {}
        if self.engine.model.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = f"lower --{self.engine.family.size_option} or --max_new_tokens"
        return None if len(queries) > 1 else [{"error": f"out of memory with this question alone; {smaller}"}]

    def _answer(self, queries: Sequence[Query]) -> list[dict[str, str]]:
        results: list[dict[str, str]] = [{} for _ in queries]
        asked: dict[int, Chat] = {}
        for index, query in enumerate(queries):
            try:
                shown = self._show(query)
                shown.conversation.ask(query.prompt)
                asked[index] = shown
            except UserError as error:
                results[index] = {"error": str(error)}
        # The next batch may begin with the images that this one ends with; the others are not asked about again.
        self._seen = {key: seen for key, seen in self._seen.items() if key == _shown_by(queries[-1])}
        if asked:
            answers = ask_together(list(asked.values()), [queries[index].prompt for index in asked], self.sampling)
            for index, answer in zip(asked, answers, strict=True):
                results[index] = {"answer": answer}
        return results

    def _show(self, query: Query) -> Chat:
        """A conversation in which what a question is about was shown and encoded, and nothing was said."""
        key = _shown_by(query)
        if key not in self._seen:
            chat = Chat(self.engine)
            if query.video is not None:
                chat.watch(self.folder / query.video, self.frames)
            for path in () if query.video is not None else query.shown:
                chat.look(self.folder / path, self._place(query.region))
            chat.encode_shown()
            self._seen[key] = chat
        return self._seen[key]

    def _place(self, region: str | tuple[float, ...] | None) -> Region | None:
        """A region whose path, if it has one, starts from where the questions are."""
        return self.folder / region if isinstance(region, str) and "," not in region else region


def _shown_by(query: Query) -> tuple[Any, ...]:
    """All that is encoded for a question."""
    return (*query.shown, query.region)
