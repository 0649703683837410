"""Conversations about images: what was said and shown, over an engine that knows tensors and caches."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import ProcessorMixin, TextStreamer

from sail_encoder.chat.engine import Answer, Context, Engine, Prefix, Prompt, Reply, load_engine
from sail_encoder.chat.families import chosen_options, find_chat, find_family
from sail_encoder.chat.questions import check_prompt
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.decoding import ImageLike
from sail_encoder.images.video import FRAMES, read_frames
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import TINY


@dataclass(frozen=True)
class Turn:
    """A question in its place.

    Attributes:
        message: The question with its images, in transformers' format.
        ids: Tokens of the conversation up to where the answer begins.
        prefixes: All images among them.
    """

    message: dict[str, Any]
    ids: list[int]
    prefixes: list[Prefix]


class Conversation:
    """What was said and shown, as messages and as tokens.

    Args:
        engine: Writes turns as tokens, and says how many there may be.

    Attributes:
        messages: The conversation so far, in transformers' format.
        ids: Its tokens; those of answers are as they were said.
        prefixes: The images among them, in order.
        waiting: Images that the next question is about.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.messages: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.prefixes: list[Prefix] = []
        self.waiting: list[Prefix] = []

    def fork(self) -> "Conversation":
        """A conversation that goes on from here on its own."""
        other = Conversation(self.engine)
        other.messages, other.ids = list(self.messages), list(self.ids)
        other.prefixes, other.waiting = list(self.prefixes), list(self.waiting)
        return other

    def show(self, prefixes: Sequence[Prefix]) -> None:
        """Shows images, or the frames of a video, before the next question.

        Raises:
            UserError: If there is no room for them, or a video would share its turn.
        """
        if self.waiting and (self.waiting[-1].is_frame or prefixes[0].is_frame):
            raise UserError("a video goes with no other video or image in one turn; ask about what was shown first")
        waiting = [*self.waiting, *prefixes]
        self.check_room(len(self.ids) + sum(prefix.tokens for prefix in waiting))
        self.waiting = waiting

    def ask(self, prompt: str) -> Turn:
        """Puts a question into its place; the conversation stays as it is until it is answered.

        Raises:
            UserError: If the prompt is empty or stands for an image, or there is no room for it and an answer.
        """
        check_prompt(prompt, self.engine.family.placeholders)
        ids = self.ids + self.engine.tokenize_turn(prompt, self.waiting, is_first=not self.messages)
        self.check_room(len(ids) + 1)
        content = [*({"type": "image"} for _ in self.waiting), {"type": "text", "text": prompt}]
        return Turn({"role": "user", "content": content}, ids, self.prefixes + self.waiting)

    def opening(self) -> list[int]:
        """Tokens with which the next turn begins in any case: the conversation so far, and the images shown."""
        turn = self.engine.tokenize_turn("?", self.waiting, is_first=not self.messages)
        return self.ids + turn[: self.engine.end_of_images(turn)]

    def accept(self, turn: Turn, reply: Reply) -> None:
        """Goes on with a question and the answer to it."""
        ended = reply.ids[-1:] == [self.engine.end_id]
        self._append(turn, turn.ids + reply.ids + ([] if ended else [self.engine.end_id]), reply.answer.text)

    def recall(self, prompt: str, answer: str) -> None:
        """Goes on with a turn that took place elsewhere.

        Raises:
            UserError: As `ask`.
        """
        turn = self.ask(prompt)
        ids = self.ids + self.engine.tokenize_turn(prompt, self.waiting, not self.messages, answer)
        self.check_room(len(ids))
        self._append(turn, ids, answer)

    def _append(self, turn: Turn, ids: list[int], answer: str) -> None:
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        self.messages = [*self.messages, turn.message, said]
        self.ids, self.prefixes, self.waiting = ids, turn.prefixes, []

    def check_room(self, tokens: int) -> None:
        """Raises a `UserError` if a conversation of so many tokens is longer than the model is meant for."""
        if tokens > self.engine.limit:
            raise UserError(
                f"the conversation would have {tokens:,} tokens, more than the {self.engine.limit:,} of this model; "
                f"shorten the prompt, start over, or lower --{self.engine.image_limit} for smaller images"
            )


class Chat:
    """A conversation with a model; every token of it is encoded once, whatever is asked next.

    Args:
        model: A model of a family that can chat, on its device.
        processor: Its processor.

    Attributes:
        engine: Runs the model.
        conversation: What was said and shown.
        context: Beginning of the conversation that is encoded.
    """

    def __init__(self, model: Any, processor: ProcessorMixin) -> None:
        family = find_family(model.config.model_type, type(model).__name__)
        self._begin(family.engine_class()(model, processor))

    @classmethod
    def from_engine(cls, engine: Engine) -> "Chat":
        """A new conversation with a model that is loaded."""
        chat = cls.__new__(cls)
        chat._begin(engine)
        return chat

    def _begin(self, engine: Engine) -> None:
        self.engine = engine
        self.reset()

    @property
    def model(self) -> Any:
        """The model."""
        return self.engine.model

    @property
    def processor(self) -> Any:
        """Its processor."""
        return self.engine.processor

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, in transformers' format."""
        return self.conversation.messages

    def reset(self) -> None:
        """Forgets everything that was shown and said."""
        self.conversation = Conversation(self.engine)
        self.context: Context | None = None

    def fork(self) -> "Chat":
        """A conversation that goes on from here on its own; what is encoded so far is shared, not copied."""
        other = Chat.from_engine(self.engine)
        other.conversation, other.context = self.conversation.fork(), self.context
        return other

    def look(self, image: ImageLike) -> None:
        """Shows an image, which the next question is about.

        Raises:
            ImageError: If it cannot be read.
            UserError: If the conversation has no room for it.
        """
        self._show([self.engine.encode(image)])

    def watch(self, video: Any, frames: int = FRAMES) -> None:
        """Shows a video, which the next question is about.

        Args:
            video: A file, or the frames as a list of images.
            frames: How many frames of a file to take, evenly spaced.

        Raises:
            ImageError: If it cannot be read.
            UserError: If the model takes no videos, or the conversation has no room for it.
        """
        images = video if isinstance(video, (list, tuple)) else read_frames(video, frames)
        self._show(self.engine.encode_frames(images))

    def _show(self, prefixes: Sequence[Prefix]) -> None:
        shown = self.conversation.fork()
        shown.show(prefixes)
        if self.engine.images_lead and not shown.ids and len(shown.waiting) == 1:
            self.context = self.engine.prefill(Prompt(shown.opening(), shown.waiting))
        self.conversation = shown

    def encode_shown(self) -> None:
        """Encodes the images shown in their place at once, so that conversations that fork off here share that."""
        if self.conversation.waiting:
            images = self.conversation.prefixes + self.conversation.waiting
            self.context = self.engine.prefill(Prompt(self.conversation.opening(), images, self.context))

    def recall(self, prompt: str, answer: str, images: Sequence[ImageLike] = ()) -> None:
        """Adds a turn that took place elsewhere, as if the model had answered so.

        Raises:
            ImageError: If an image cannot be read.
            UserError: If the prompt is empty or stands for an image, or the conversation has no room for it.
        """
        recalled = self.fork()
        for image in images:
            recalled.look(image)
        recalled.conversation.recall(prompt, answer)
        self.conversation, self.context = recalled.conversation, recalled.context

    def ask(
        self,
        prompt: str,
        image: ImageLike | None = None,
        sampling: Sampling = Sampling(),
        streamer: TextStreamer | None = None,
        stop: threading.Event | None = None,
        *,
        images: Sequence[ImageLike] | None = None,
        region: Any = None,
    ) -> Answer:
        """Asks a question; a turn that fails leaves the conversation as it was.

        Args:
            prompt: The question.
            image: An image to show first.
            sampling: How the answer is chosen.
            streamer: Receives the answer's tokens as they come.
            stop: Ends the answer where it is, once set.
            images: Several images to show first, in place of one.
            region: Part of the image that the question is about, for models that take one.

        Returns:
            The answer, a string; `masks` says where in the image it is, for models that give masks.

        Raises:
            UserError: If the prompt is empty or stands for an image, the conversation has no room for it, or the model
                takes no region.
        """
        if images is not None and (image is not None or region is not None):
            raise UserError("several images go with no other image and no region; show one after the other")
        check_prompt(prompt, self.engine.family.placeholders)
        asked = self.fork()
        if region is not None:
            asked._show([self.engine.encode_region(image, region)])
        else:
            for one in images or ([] if image is None else [image]):
                asked.look(one)
        turn = asked.conversation.ask(prompt)
        reply = self.engine.generate(Prompt(turn.ids, turn.prefixes, asked.context), sampling, streamer, stop)
        asked.conversation.accept(turn, reply)
        self.conversation, self.context = asked.conversation, reply.context
        return reply.answer


def load_chat(
    model: str = TINY,
    device: str = "auto",
    dtype: str = "auto",
    max_tokens: int | None = None,
    sliding_window: int | Literal["config", "none"] = "config",
    *,
    max_tiles: int | None = None,
    thinking: bool = False,
    exif_rotate: bool = False,
) -> Chat:
    """Loads a model to talk to: SAIL, SAIL-VL or SAIL-VL2, whole, or an adapter (PEFT) on one of them.

    Args:
        model: `sail-tiny`, a folder, or a Hub name.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        max_tokens: SAIL: patches of an image at most; by default the model's own limit.
        sliding_window: SAIL: how far back text sees: as the configuration says, all the way (`none`), or this many
            tokens. With SAIL-7B's 4,096 an answer about an image of nearly as many patches no longer sees its first
            rows.
        max_tiles: SAIL-VL: tiles of an image at most, without the thumbnail; by default the model's own limit.
        thinking: SAIL-VL: whether to end each question with the published request to think before answering.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.

    Raises:
        CheckpointError: If there is no such model, or it cannot chat.
        UserError: If an option is not for this family of models.
    """
    options = chosen_options(
        max_tokens=max_tokens, sliding_window=sliding_window, max_tiles=max_tiles, thinking=thinking
    )
    engine = load_engine(find_chat(model), device, dtype, options)
    engine.exif_rotate = exif_rotate
    return Chat.from_engine(engine)


def ask_each(chat: Chat, image: ImageLike, prompts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
    """Asks independent questions about one image, which is encoded once."""
    base = Chat.from_engine(chat.engine)
    base.look(image)
    base.encode_shown()
    return [base.fork().ask(prompt, sampling=sampling) for prompt in prompts]


def ask_together(chats: Sequence[Chat], prompts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
    """Asks each of several conversations a question, in one batch; the conversations stay as they are.

    Args:
        chats: Conversations with one model; one may appear several times.
        prompts: A question for each.
        sampling: How the answers are chosen.

    Raises:
        UserError: If a prompt is empty or stands for an image, or a conversation has no room for it.
    """
    turns = [chat.conversation.ask(prompt) for chat, prompt in zip(chats, prompts, strict=True)]
    asked = [Prompt(turn.ids, turn.prefixes, chat.context) for chat, turn in zip(chats, turns, strict=True)]
    return chats[0].engine.generate_batch(asked, sampling)
