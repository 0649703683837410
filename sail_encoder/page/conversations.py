"""Conversations of visitors about their images, with answers that come word by word."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from transformers import TextIteratorStreamer

from sail_encoder.chat.conversation import Chat, load_chat
from sail_encoder.chat.engine import Answer
from sail_encoder.chat.families import find_chat
from sail_encoder.page.memory import BoundedCache
from sail_encoder.page.photos import Photo

_HELD = 8
"""Conversations whose keys and values stay in memory; others are encoded again when they go on."""

Turn = tuple[str, str]
"""A question and its answer."""


Topic = tuple[str, str, str]
"""Whose conversation about what: the visitor, by a name that cannot be guessed, the image, by its token, the model."""


class Conversations:
    """Conversations with models, each of which is loaded when it is first asked."""

    def __init__(self) -> None:
        self._models: BoundedCache[str, Chat] = BoundedCache(_HELD)
        self._held: BoundedCache[Topic, Chat] = BoundedCache(_HELD)

    def ask(self, topic: Topic, photo: Photo, turns: Sequence[Turn], question: str) -> Iterator[Answer]:
        """Asks about an image.

        Args:
            topic: Whose conversation this is.
            photo: The image.
            turns: What was said so far.
            question: The question.

        Yields:
            The answer as far as it has come, and in the end the whole answer, with masks where it has any.

        Raises:
            CheckpointError: If the model cannot chat.
            UserError: If the question cannot be asked.
        """
        model = topic[2]
        # Small files say whether it can chat, before anything is loaded.
        find_chat(model)
        chat = self._held.get(topic)
        if chat is None or len(chat.messages) != 2 * len(turns) or not turns:
            chat = self._models.get_or_make(model, lambda: load_chat(model, exif_rotate=True)).fork()
            chat.look(photo.content)
            for said, answer in turns:
                chat.recall(said, answer)
        self._held.put(topic, chat)
        yield from _stream(chat, question)


def _stream(chat: Chat, question: str) -> Iterator[Answer]:
    streamer = TextIteratorStreamer(chat.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = threading.Event()

    def answer() -> Answer:
        try:
            return chat.ask(question, streamer=streamer, stop=stop)
        finally:
            # A question that is refused ends the stream too.
            streamer.end()

    with ThreadPoolExecutor(1, "chat") as pool:
        future = pool.submit(answer)
        try:
            said = ""
            for text in streamer:
                said += text
                yield Answer(said.strip())
            yield future.result()
        finally:
            stop.set()
