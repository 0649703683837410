"""Engines: one family of models each, from images and token ids to answers.

An engine knows tensors and caches, and no conversation. A `Prompt` is a whole conversation up to where an answer
begins; what of it was encoded before comes along as a `Context`, so that every token is encoded once.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, ProcessorMixin, StoppingCriteria, TextStreamer

from sail_encoder.chat.caches import join_caches, pad_after_prefixes
from sail_encoder.chat.families import ChatFamily
from sail_encoder.chat.questions import check_prompt
from sail_encoder.chat.sampling import Sampling
from sail_encoder.chat.texts import TextTokenizer
from sail_encoder.images.decoding import Array, ImageLike
from sail_encoder.images.resizing import Size
from sail_encoder.models.cache_name import CACHE, fork_cache
from sail_encoder.models.pixel_sail.regions import Region


class Answer(str):
    """Text of an answer, which is a string, and the places in the image that it points to.

    Args:
        text: The answer.
        masks: bool [q, height, width] at the size of the image, a mask per thing that the answer points to.
        ids: Tokens of the answer as they were said, with the one that ended it.

    Attributes:
        masks: The same; [0, height, width] where the model gives none, [0, 0, 0] where there is no image.
        ids: The same.
    """

    masks: Array
    ids: list[int]

    def __new__(cls, text: str, masks: Array | None = None, ids: Sequence[int] = ()) -> "Answer":
        answer = super().__new__(cls, text)
        answer.masks = np.zeros((0, 0, 0), bool) if masks is None else masks
        answer.ids = list(ids)
        return answer

    @property
    def text(self) -> str:
        """The answer as a plain string."""
        return str.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text, self.masks, self.ids)


@dataclass(frozen=True, eq=False)
class Prefix:
    """An image as an engine has encoded it, from which any number of conversations can go on.

    Attributes:
        content: What the model needs of it, in the family's own form.
        tokens: Tokens that it takes in a conversation.
        image_size: (height, width) of the image in pixels.
        is_frame: Whether it is a frame of a video.
    """

    content: Tensor
    tokens: int
    image_size: Size
    is_frame: bool = False


@dataclass(frozen=True, eq=False)
class Context:
    """Beginning of a conversation that a model has encoded; it never changes, so conversations may share it.

    Attributes:
        ids: Its tokens.
        cache: Their keys and values, of every layer.
    """

    ids: list[int]
    cache: DynamicCache

    def fits(self, ids: list[int]) -> bool:
        """Tells whether a conversation begins with it."""
        return ids[: len(self.ids)] == self.ids


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation up to where an answer begins.

    Attributes:
        ids: All its tokens.
        prefixes: All images in it, in order.
        context: Beginning of it that is encoded already.
    """

    ids: list[int]
    prefixes: Sequence[Prefix]
    context: Context | None = None

    @property
    def image_size(self) -> Size:
        """(height, width) of the last image in pixels, (0, 0) where there is none."""
        return self.prefixes[-1].image_size if self.prefixes else (0, 0)


class Engine(ABC):
    """A model that answers questions about images.

    A family says how an image is encoded, how a question is worded, how a turn becomes tokens, and how a prompt with
    images fills a cache. Generation, alone and in batches, is common to all.

    Args:
        model: The model, on its device, in evaluation mode.
        processor: Its processor.

    Attributes:
        sampling: How an answer is chosen where a call does not say.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
    """

    family: ClassVar[ChatFamily]
    images_lead: ClassVar[bool] = False
    """Images stand before all text of their turn, so that they can be encoded before a question."""
    placeholder: ClassVar[str]
    """Text that stands for an image in the chat template."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Words of the format that may be tokens, although they are no special ones."""
    sayable: ClassVar[tuple[str, ...]] = ()
    """Special tokens that a question or an earlier answer may hold."""

    def __init__(self, model: Any, processor: ProcessorMixin) -> None:
        self.model = model
        self.processor = processor
        self.text = TextTokenizer(processor.tokenizer, self.markers, self.sayable)
        self.sampling = Sampling(self.family.longest_answer())
        self.exif_rotate = False

    @classmethod
    @abstractmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> "Engine":
        """Loads a model; `options` are those of its family.

        Raises:
            CheckpointError: If the checkpoint cannot be used.
        """

    @abstractmethod
    def encode(self, image: ImageLike) -> Prefix:
        """Reads an image and encodes it as far as that does not depend on the conversation.

        Raises:
            ImageError: If it cannot be read.
        """

    def encode_region(self, image: ImageLike, region: Region) -> Prefix:
        """Encodes an image of which questions name a region; engines of families that know regions have their own way.

        Args:
            image: The image.
            region: A mask or a box in it.

        Raises:
            ImageError: If the image, or the picture of a mask, cannot be read.
            UserError: If the model knows no regions, or this one cannot be used.
        """
        self.family.refuse_regions()

    def check_question(self, question: str, shown: Sequence[Prefix], earlier: Sequence[Prefix]) -> None:
        """Makes sure that a question can be asked.

        Args:
            question: The question.
            shown: The images that it is about.
            earlier: Those of earlier turns.

        Raises:
            UserError: If it cannot.
        """
        check_prompt(question, self.family.placeholders)

    def encode_frames(self, frames: Sequence[ImageLike]) -> list[Prefix]:
        """Encodes the frames of a video.

        Raises:
            ImageError: If one cannot be read.
            UserError: If the model takes no videos.
        """
        self.family.require_videos()
        return [replace(self.encode(frame), is_frame=True) for frame in frames]

    def compose(self, question: str, prefixes: Sequence[Prefix]) -> str | list[dict[str, Any]]:
        """Words a question about images as the content of a message.

        Raises:
            UserError: If the question places other images than there are.
        """
        return [*({"type": "image"} for _ in prefixes), {"type": "text", "text": question}]

    @abstractmethod
    def tokenize(self, pieces: Sequence[str], prefixes: Sequence[Prefix]) -> list[int]:
        """Token ids of the next part of a conversation.

        Args:
            pieces: Words of the format, and what was `Said` among them.
            prefixes: Images of the placeholders in the former, in order.
        """

    @abstractmethod
    def extend(self, cache: DynamicCache, ids: list[int], prefixes: Sequence[Prefix]) -> DynamicCache:
        """Runs the model over tokens that follow those in a cache, and adds their keys and values.

        Args:
            cache: An empty one at the beginning of a conversation.
            ids: The tokens.
            prefixes: The images among them, in order.

        Returns:
            A cache with all of them.
        """

    @property
    @abstractmethod
    def image_end_id(self) -> int:
        """Id of the token that ends an image."""

    @property
    @abstractmethod
    def end_id(self) -> int:
        """Id of the token that ends an answer."""

    @property
    def end_ids(self) -> Sequence[int]:
        """Ids of all tokens after which a model says no more."""
        return (self.end_id,)

    @abstractmethod
    def generation_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Further inputs of `generate` for prompts whose images are in the cache."""

    @property
    def config(self) -> Any:
        """Configuration of the language model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def limit(self) -> int:
        """Tokens of the longest conversation that the model is meant for."""
        return int(self.config.max_position_embeddings)

    def end_of_images(self, ids: list[int]) -> int:
        """Number of tokens up to the end of the last image, 0 where there is none."""
        return len(ids) - ids[::-1].index(self.image_end_id) if self.image_end_id in ids else 0

    @torch.no_grad()
    def prefill(self, prompt: Prompt) -> Context:
        """Runs the model over all of a prompt that is not in its context."""
        context = self._fitting_context(prompt)
        ids = prompt.ids[len(context.ids) :]
        prefixes = prompt.prefixes[context.ids.count(self.image_end_id) :]
        return Context(prompt.ids, self.extend(fork_cache(context.cache), ids, prefixes)) if ids else context

    @torch.no_grad()
    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        streamer: TextStreamer | None = None,
        stop: threading.Event | None = None,
    ) -> tuple[Answer, Context]:
        """Answers one prompt.

        Args:
            prompt: The conversation so far; its context stays as it is.
            sampling: How the answer is chosen; it ends where the range of the model ends.
            streamer: Receives the answer's tokens as they come.
            stop: Ends the answer where it is, once set.

        Returns:
            The answer, and the conversation up to its last token but one, encoded.
        """
        context = self._encode_images(prompt)
        cache = fork_cache(context.cache)
        input_ids = torch.tensor([prompt.ids], device=self.model.device)
        [said] = self._call(
            [prompt],
            sampling,
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            streamer=streamer,
            stopping_criteria=None if stop is None else [_StopWhenSet(stop)],
            **{CACHE: cache},
        )
        [answer] = self._read_answers([said], [prompt], [context])
        return answer, Context((prompt.ids + said)[: cache.get_seq_length()], cache)

    @torch.no_grad()
    def generate_batch(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Answer]:
        """Answers several prompts together; each is answered as it would be alone."""
        contexts = [self._encode_images(prompt) for prompt in prompts]
        rows, known = [prompt.ids for prompt in prompts], [len(context.ids) for context in contexts]
        if self._disturb_each_other(rows, known, (sampling or self.sampling).max_new_tokens):
            return [self.generate(prompt, sampling)[0] for prompt in prompts]
        pad = self.processor.tokenizer.pad_token_id
        input_ids, attention_mask = (x.to(self.model.device) for x in pad_after_prefixes(rows, known, pad))
        cache = join_caches([context.cache for context in contexts], self.config)
        answers = self._call(prompts, sampling, input_ids=input_ids, attention_mask=attention_mask, **{CACHE: cache})
        return self._read_answers(answers, prompts, contexts)

    def _call(self, prompts: Sequence[Prompt], sampling: Sampling | None, **inputs: Any) -> list[list[int]]:
        """Tokens that the model says to each prompt; those that ended earlier are padded."""
        chosen = sampling or self.sampling
        room = self.limit - max(len(prompt.ids) for prompt in prompts)
        options = {**chosen.options, "max_new_tokens": min(chosen.max_new_tokens, room)}
        pad = self.processor.tokenizer.pad_token_id
        output = self.model.generate(pad_token_id=pad, **inputs, **self.generation_inputs(prompts), **options)
        said: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
        return said

    def _read_answers(
        self, answers: Sequence[list[int]], prompts: Sequence[Prompt], contexts: Sequence[Context]
    ) -> list[Answer]:
        said = [self._cut_at_end(ids) for ids in answers]
        masks = self.predict_masks(said, prompts, contexts)
        return [Answer(self.decode(ids).strip(), one, ids) for ids, one in zip(said, masks, strict=True)]

    def _cut_at_end(self, ids: list[int]) -> list[int]:
        """Tokens of an answer up to the one that ended it, which padding may follow."""
        ends = self.end_ids
        return ids[: 1 + next((index for index, token in enumerate(ids) if token in ends), len(ids))]

    def decode(self, ids: int | Sequence[int]) -> str:
        """Text that tokens of an answer, or one of them, are shown as."""
        text: str = self.processor.decode(ids, skip_special_tokens=True)
        return text

    def predict_masks(
        self, answers: Sequence[list[int]], prompts: Sequence[Prompt], contexts: Sequence[Context]
    ) -> list[Array]:
        """Computes where in its last image each of several answers points to.

        Args:
            answers: Their tokens.
            prompts: What they are answers to.
            contexts: For each prompt, a beginning of it with all its images, encoded.

        Returns:
            Per answer bool [q, height, width], as in `Answer`; q is 0 for models that give no masks.
        """
        return [np.zeros((0, *prompt.image_size), bool) for prompt in prompts]

    def _encode_images(self, prompt: Prompt) -> Context:
        """Context of a prompt that holds all its images."""
        context, end = self._fitting_context(prompt), self.end_of_images(prompt.ids)
        if end <= len(context.ids):
            return context
        return self.prefill(Prompt(prompt.ids[:end], prompt.prefixes, context))

    def _fitting_context(self, prompt: Prompt) -> Context:
        """Context of a prompt if it begins so, or else an empty one."""
        if prompt.context is not None and prompt.context.fits(prompt.ids):
            return prompt.context
        return Context([], DynamicCache(config=self.config))

    def _disturb_each_other(self, rows: Sequence[list[int]], known: Sequence[int], new_tokens: int) -> bool:
        """Tells whether prompts in one batch would change each other's answers."""
        texts = [len(row) - prefix for row, prefix in zip(rows, known, strict=True)]
        window = getattr(self.config, "sliding_window", None)
        # Padding between an image and its question takes a place in the window.
        is_bound = window is not None and max(known) + max(texts) + new_tokens > window and min(texts) < max(texts)
        # All would have to be as short as the longest prompt leaves room for.
        return len(rows) > 1 and (is_bound or max(map(len, rows)) + new_tokens > self.limit)


class _StopWhenSet(StoppingCriteria):
    """Ends generation once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
