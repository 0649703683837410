"""Conversations about images: what was said and shown, over an engine that knows tensors and caches."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from transformers import ProcessorMixin, TextStreamer

from sail_encoder.chat.engine import Answer, Context, Engine, Prefix, Prompt
from sail_encoder.chat.families import chosen_options, find_chat, find_family
from sail_encoder.chat.loading import load_engine
from sail_encoder.chat.questions import check_prompt
from sail_encoder.chat.sampling import Sampling
from sail_encoder.chat.texts import Message, render_turn
from sail_encoder.images.decoding import ImageLike
from sail_encoder.images.video import FRAMES, read_frames
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import TINY
from sail_encoder.models.pixel_sail.regions import Region


class Conversation:
    """Messages of a conversation, and the tokens that they are to a model.

    Args:
        engine: Words and tokenizes turns, and says how many tokens there may be.

    Attributes:
        messages: The conversation so far, in transformers' format.
        ids: Its tokens; those of answers are as they were said.
        prefixes: The images among them, in order.
        shown: Images that the next question is about.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.messages: list[Message] = []
        self.ids: list[int] = []
        self.prefixes: list[Prefix] = []
        self.shown: list[Prefix] = []

    def fork(self) -> "Conversation":
        """A conversation that goes on from here on its own."""
        other = Conversation(self.engine)
        other.messages, other.ids = list(self.messages), list(self.ids)
        other.prefixes, other.shown = list(self.prefixes), list(self.shown)
        return other

    def show(self, prefixes: Sequence[Prefix]) -> None:
        """Shows images, or the frames of a video, before the next question.

        Raises:
            UserError: If there is no room for them, or a video would share its turn.
        """
        if self.shown and (self.shown[-1].is_frame or prefixes[0].is_frame):
            raise UserError("a video goes with no other video or image in one turn; ask about what was shown first")
        shown = [*self.shown, *prefixes]
        self._check_room(len(self.ids) + sum(prefix.tokens for prefix in shown))
        self.shown = shown

    def ask(self, question: str) -> Prompt:
        """Puts a question into its place; the conversation stays as it is until it is answered.

        Raises:
            UserError: If the question is empty or stands for an image, or there is no room for it and an answer.
        """
        self.engine.check_question(question, self.shown, self.prefixes)
        ids = self.ids + self._tokenize([self._word(question)])
        self._check_room(len(ids) + 1)
        return Prompt(ids, self.prefixes + self.shown)

    def opening(self) -> Prompt:
        """The conversation and the images shown, as they begin the next turn whatever is asked."""
        turn = self._tokenize([self._word("?")])
        return Prompt(self.ids + turn[: self.engine.end_of_images(turn)], self.prefixes + self.shown)

    def accept(self, question: str, prompt: Prompt, answer: Answer) -> None:
        """Goes on with a question, as `ask` has placed it, and the answer to it."""
        ids = prompt.ids + answer.ids
        self._append(question, answer.text, ids if ids[-1] in self.engine.end_ids else [*ids, self.engine.end_id])

    def recall(self, question: str, answer: str) -> None:
        """Goes on with a turn that took place elsewhere.

        Raises:
            UserError: As in `ask`.
        """
        self.ask(question)
        ids = self.ids + self._tokenize([self._word(question), _answer_message(answer)])
        self._check_room(len(ids))
        self._append(question, answer, ids)

    def _append(self, question: str, answer: str, ids: list[int]) -> None:
        self.messages = [*self.messages, self._word(question), _answer_message(answer)]
        self.ids, self.prefixes, self.shown = ids, self.prefixes + self.shown, []

    def _word(self, question: str) -> Message:
        return {"role": "user", "content": self.engine.compose(question, self.shown)}

    def _tokenize(self, turn: Sequence[Message]) -> list[int]:
        pieces = render_turn(self.engine.processor, self.messages, turn, self.engine.placeholder)
        return self.engine.tokenize(pieces, self.shown)

    def _check_room(self, tokens: int) -> None:
        if tokens > self.engine.limit:
            raise UserError(
                f"the conversation would have {tokens:,} tokens, more than the {self.engine.limit:,} of this model; "
                f"shorten the prompt, start over, or lower --{self.engine.family.size_option} for smaller images"
            )


def _answer_message(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


class Chat:
    """A conversation with a model; every token of it is encoded once, whatever is asked next.

    Args:
        model: An engine, or a model of a family that can chat, on its device.
        processor: Processor of the model; an engine has its own.

    Attributes:
        engine: Runs the model.
        conversation: What was said and shown.
        context: Beginning of the conversation that is encoded, None at the start.

    Raises:
        CheckpointError: If the model is of no family that can chat.
    """

    def __init__(self, model: Any, processor: ProcessorMixin | None = None) -> None:
        if not isinstance(model, Engine):
            family = find_family(model.config.model_type, type(model).__name__)
            model = family.engine_class()(model, processor)
        self.engine: Engine = model
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
    def messages(self) -> list[Message]:
        """The conversation so far, in transformers' format."""
        return self.conversation.messages

    def reset(self) -> None:
        """Forgets everything that was shown and said."""
        self.conversation = Conversation(self.engine)
        self.context: Context | None = None

    def fork(self) -> "Chat":
        """A conversation that goes on from here on its own; what is encoded so far is shared, not copied."""
        other = Chat(self.engine)
        other._become(self)
        return other

    def _become(self, other: "Chat") -> None:
        self.conversation, self.context = other.conversation.fork(), other.context

    def look(self, image: ImageLike, region: Region | None = None) -> None:
        """Shows an image, which the next question is about.

        Args:
            image: The image.
            region: A mask or a box in it that the question names as `<Prompt0>`, for models that know regions.

        Raises:
            ImageError: If it cannot be read.
            UserError: If the conversation has no room for it, or the region cannot be used.
        """
        encode = self.engine.encode
        self._show([encode(image) if region is None else self.engine.encode_region(image, region)])

    def watch(self, video: Any, frames: int = FRAMES) -> None:
        """Shows a video, which the next question is about.

        Args:
            video: A file, or the frames as a list of images.
            frames: How many frames of a file to take, evenly spaced.

        Raises:
            ImageError: If it cannot be read.
            UserError: If the model takes no videos, or the conversation has no room for it.
        """
        self.engine.family.require_videos()
        images = video if isinstance(video, (list, tuple)) else read_frames(video, frames)
        self._show(self.engine.encode_frames(images))

    def _show(self, prefixes: Sequence[Prefix]) -> None:
        shown = self.fork()
        shown.conversation.show(prefixes)
        if self.engine.images_lead and not self.conversation.ids and not self.conversation.shown:
            shown.encode_shown()
        self._become(shown)

    def encode_shown(self) -> None:
        """Encodes the images shown in their place at once, so that conversations that fork off here share that."""
        if self.conversation.shown:
            self.context = self.engine.prefill(replace(self.conversation.opening(), context=self.context))

    def recall(self, prompt: str, answer: str, images: Sequence[ImageLike] = ()) -> None:
        """Adds a turn that took place elsewhere, as if the model had answered so.

        Args:
            prompt: The question.
            answer: The answer to it.
            images: Images that it was about.

        Raises:
            ImageError: If an image cannot be read.
            UserError: If the prompt is empty or stands for an image, or the conversation has no room for it.
        """
        recalled = self.fork()
        for image in images:
            recalled.look(image)
        recalled.conversation.recall(prompt, answer)
        self._become(recalled)

    def ask(
        self,
        prompt: str,
        image: ImageLike | None = None,
        sampling: Sampling | None = None,
        streamer: TextStreamer | None = None,
        stop: threading.Event | None = None,
        *,
        images: Sequence[ImageLike] | None = None,
        region: Region | None = None,
    ) -> Answer:
        """Asks a question; a turn that fails leaves the conversation as it was.

        Args:
            prompt: The question.
            image: An image to show first.
            sampling: How the answer is chosen; None for the way of the model's family.
            streamer: Receives the answer's tokens as they come.
            stop: Ends the answer where it is, once set.
            images: Several images to show first, in place of one.
            region: A region of `image` that the prompt names as `<Prompt0>`: a box (x0, y0, x1, y1) in pixels, or a
                mask, as an array [height, width] or the path of a picture.

        Returns:
            The answer, a string; `masks` says where in the image it is, for models that give masks.

        Raises:
            ImageError: If an image cannot be read.
            UserError: If the prompt is empty or stands for an image, the region cannot be used, or the conversation has
                no room for it.
        """
        if image is not None and images is not None:
            raise UserError("image and images do not go together; put all of them into images")
        if region is not None and image is None:
            raise UserError("a region is one of an image; give both in one call")
        check_prompt(prompt, self.engine.family.placeholders)
        asked = self.fork()
        if image is not None:
            asked.look(image, region)
        for one in images or ():
            asked.look(one)
        question = asked.conversation.ask(prompt)
        answer, context = self.engine.generate(replace(question, context=asked.context), sampling, streamer, stop)
        asked.conversation.accept(prompt, question, answer)
        self.conversation, self.context = asked.conversation, context
        return answer


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
    """Loads a model to talk to: SAIL, Pixel-SAIL, SAIL-VL or SAIL-VL2, whole, or an adapter (PEFT) on one of them.

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
    return Chat(engine)


def ask_each(chat: Chat, image: ImageLike, prompts: Sequence[str], sampling: Sampling | None = None) -> list[Answer]:
    """Asks independent questions about one image, which is encoded once."""
    base = Chat(chat.engine)
    base.look(image)
    base.encode_shown()
    return [base.fork().ask(prompt, sampling=sampling) for prompt in prompts]


def ask_together(chats: Sequence[Chat], prompts: Sequence[str], sampling: Sampling | None = None) -> list[Answer]:
    """Asks each of several conversations a question, in one batch; the conversations stay as they are.

    Args:
        chats: Conversations with one model; one may appear several times.
        prompts: A question for each.
        sampling: How the answers are chosen; None for the way of the model's family.

    Raises:
        UserError: If a prompt is empty or stands for an image, or a conversation has no room for it.
    """
    questions = [chat.conversation.ask(prompt) for chat, prompt in zip(chats, prompts, strict=True)]
    asked = [replace(question, context=chat.context) for chat, question in zip(chats, questions, strict=True)]
    return chats[0].engine.generate_batch(asked, sampling)
