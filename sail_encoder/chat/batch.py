"""Answers to many questions, in batches and in order."""

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from sail_encoder.chat.answers import AnswerFile
from sail_encoder.chat.conversation import Chat, ask_together
from sail_encoder.chat.questions import Query
from sail_encoder.chat.sampling import Sampling
from sail_encoder.io.devices import is_out_of_memory
from sail_encoder.io.errors import UserError
from sail_encoder.io.signals import Interrupt

_OUT_OF_MEMORY = "out of memory with this question alone; lower --max_tokens or --max_new_tokens"


def answer_all(chat: Chat, answers: AnswerFile, folder: Path, sampling: Sampling, batch_size: int) -> int:
    """Answers the questions that have no answer yet.

    Args:
        chat: Model and processor; its own conversation is not touched.
        answers: Holds the questions, and takes the answers.
        folder: What relative image paths start from.
        sampling: How answers are chosen.
        batch_size: Questions that are answered together; fewer from where memory does not allow that.

    Returns:
        Exit status: 0 done, 1 done with errors recorded, 130 or 143 stopped by a signal.
    """
    stop = threading.Event()
    asker = Asker(chat, folder, sampling)
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
    return interrupt.status or int(answers.failed > 0)


class Asker:
    """Answers questions in batches; an image is encoded once for all questions about it that follow each other.

    Args:
        chat: Model and processor; its own conversation is not touched.
        folder: What relative image paths start from.
        sampling: How answers are chosen.
    """

    def __init__(self, chat: Chat, folder: Path, sampling: Sampling) -> None:
        self.chat, self.folder, self.sampling = chat, folder, sampling
        self._seen: dict[str | None, Chat] = {}

    def answer(self, queries: Sequence[Query]) -> list[dict[str, str]] | None:
        """For each question `answer`, or `error`; None where memory does not allow so many together."""
        try:
            return self._answer(queries)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause, so that the error no longer holds on to the tensors that did not fit.
        self._seen = {}
        if self.chat.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None if len(queries) > 1 else [{"error": _OUT_OF_MEMORY}]

    def _answer(self, queries: Sequence[Query]) -> list[dict[str, str]]:
        results: list[dict[str, str]] = [{} for _ in queries]
        shown: dict[int, Chat] = {}
        for index, query in enumerate(queries):
            try:
                shown[index] = self._show(query.image)
                shown[index].check_question(query.prompt)
            except UserError as error:
                shown.pop(index, None)
                results[index] = {"error": str(error)}
        # The next batch may begin with the image that this one ends with; the others are not asked about again.
        self._seen = {image: seen for image, seen in self._seen.items() if image == queries[-1].image}
        if shown:
            prompts = [queries[index].prompt for index in shown]
            answers = ask_together(list(shown.values()), prompts, self.sampling)
            for index, answer in zip(shown, answers, strict=True):
                results[index] = {"answer": answer}
        return results

    def _show(self, image: str | None) -> Chat:
        """A conversation in which this image was shown, and nothing was said."""
        if image not in self._seen:
            conversation = Chat(self.chat.model, self.chat.processor)
            if image is not None:
                conversation.look(self.folder / image)
            self._seen[image] = conversation
        return self._seen[image]
