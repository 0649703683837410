"""Engines: one family of models each, from images and token ids to answers.

An engine knows tensors and caches, and no conversation. A `Prompt` is a whole conversation up to where an answer
begins; what of it was encoded before comes along as a `Context`, so that every token is encoded once.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin, StoppingCriteria, TextStreamer

from sail_encoder.chat.caches import fork_cache, join_caches, pad_after_prefixes
from sail_encoder.chat.families import ChatSource, Family
from sail_encoder.chat.sampling import Sampling
from sail_encoder.chat.texts import TextTokenizer
from sail_encoder.images.decoding import Array, ImageLike, read_image
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.models.cache_name import CACHE

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Answer(str):
    """What a model says, a string, and where in the image that is.

    Args:
        text: The answer.
        masks: bool [q, height, width] at the size of the image, a mask for each thing that the answer points to.

    Attributes:
        masks: The same; [0, height, width] where the model gives none, [0, 0, 0] where there is no image.
    """

    masks: Array

    def __new__(cls, text: str, masks: Array | None = None) -> "Answer":
        answer = super().__new__(cls, text)
        answer.masks = np.zeros((0, 0, 0), bool) if masks is None else masks
        return answer

    @property
    def text(self) -> str:
        """The answer as a plain string."""
        return str(self)

    def __getnewargs__(self) -> tuple[str, Array]:
        return str(self), self.masks


@dataclass(frozen=True, eq=False)
class Prefix:
    """An image as an engine has encoded it, from which any number of conversations can go on.

    Attributes:
        tokens: Tokens that it takes in a conversation.
        image_size: (height, width) of the image in pixels.
        is_frame: Whether it is a frame of a video.
    """

    tokens: int
    image_size: tuple[int, int]
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
        """Whether a conversation begins with it."""
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


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer, its tokens, and the conversation up to its last but one, encoded."""

    answer: Answer
    ids: list[int]
    context: Context


class Engine(ABC):
    """A model that answers questions about images.

    A family implements how an image is encoded, how a turn is written as tokens, and how a prompt with images fills a
    cache. Generation, alone and in batches, is common to all.

    Args:
        model: The model, on its device, in evaluation mode.
        processor: Its processor.

    Attributes:
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
    """

    family: ClassVar[Family]
    images_lead: ClassVar[bool] = False
    """Whether images stand before all text, so that the first can be encoded as soon as it is shown."""
    image_limit: ClassVar[str]
    """Option that makes images take fewer tokens."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Words of the format that may be tokens, although they are no special ones."""

    def __init__(self, model: Any, processor: ProcessorMixin) -> None:
        self.model = model
        self.processor = processor
        self.exif_rotate = False
        self.text = TextTokenizer(processor.tokenizer, self.markers)

    @classmethod
    @abstractmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> "Engine":
        """Loads a model; `options` are those of its family.

        Raises:
            CheckpointError: If the checkpoint cannot be used.
        """

    @abstractmethod
    def prepare_image(self, image: Image.Image) -> Prefix:
        """Encodes an RGB image as far as that does not depend on the conversation."""

    @abstractmethod
    def tokenize_turn(
        self, question: str, prefixes: Sequence[Prefix], is_first: bool, answer: str | None = None
    ) -> list[int]:
        """Token ids of one turn: its images, its question, up to where the answer begins.

        Args:
            question: What is asked.
            prefixes: Images of this turn.
            is_first: Whether a conversation begins with it.
            answer: An answer to follow, with the token that ends it.

        Raises:
            UserError: If the question places other images than there are.
        """

    @abstractmethod
    def fill(self, cache: DynamicCache, ids: list[int], prefixes: Sequence[Prefix]) -> DynamicCache:
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

    def generation_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Further inputs of `generate` for prompts whose images are in the cache."""
        return {}

    def encode(self, image: ImageLike) -> Prefix:
        """Reads an image and encodes it.

        Raises:
            ImageError: If it cannot be read.
        """
        return self.prepare_image(read_image(image, self.exif_rotate)[0])

    def encode_frames(self, frames: Sequence[ImageLike]) -> list[Prefix]:
        """Encodes the frames of a video, for models that take videos.

        Raises:
            UserError: If this one does not.
        """
        self.family.require_videos()
        return [replace(self.encode(frame), is_frame=True) for frame in frames]

    def encode_region(self, image: ImageLike | None, region: Any) -> Prefix:
        """Encodes an image with a region marked in it, for models that take regions.

        Raises:
            UserError: If this one does not.
        """
        raise UserError(f"a {self.family.name} model takes no region; ask about the whole image, or crop it")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def config(self) -> Any:
        """Configuration of the language model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def limit(self) -> int:
        """Tokens of the longest conversation that the model is meant for."""
        return int(self.config.max_position_embeddings)

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer."""
        end: int = self.processor.tokenizer.eos_token_id
        return end

    def end_of_images(self, ids: list[int]) -> int:
        """Number of tokens up to the end of the last image, 0 where there is none."""
        return len(ids) - ids[::-1].index(self.image_end_id) if self.image_end_id in ids else 0

    @torch.no_grad()
    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        streamer: TextStreamer | None = None,
        stop: threading.Event | None = None,
    ) -> Reply:
        """Answers one prompt.

        Args:
            prompt: The conversation so far; its context stays as it is.
            sampling: How the answer is chosen; it ends where the range of the model ends.
            streamer: Receives the answer's tokens as they come.
            stop: Ends the answer where it is, once set.
        """
        cache = fork_cache(self._with_images(prompt).cache)
        input_ids = torch.tensor([prompt.ids], device=self.device)
        output = self._call(
            [prompt],
            sampling,
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            streamer=streamer,
            stopping_criteria=None if stop is None else [_StopWhenSet(stop)],
            **{CACHE: cache},
        )
        said = output[0].tolist()
        encoded = (prompt.ids + said)[: cache.get_seq_length()]
        return Reply(self.read_answer(said, prompt), said, Context(encoded, cache))

    @torch.no_grad()
    def generate_batch(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        """Answers several prompts together; each is answered as it would be alone."""
        contexts = [self._with_images(prompt) for prompt in prompts]
        rows, known = [prompt.ids for prompt in prompts], [len(context.ids) for context in contexts]
        if self._disturb_each_other(rows, known, sampling.max_new_tokens):
            return [self.generate(prompt, sampling).answer for prompt in prompts]
        pad = self.processor.tokenizer.pad_token_id
        input_ids, attention_mask = (x.to(self.device) for x in pad_after_prefixes(rows, known, pad))
        cache = join_caches([context.cache for context in contexts], self.config)
        output = self._call(prompts, sampling, input_ids=input_ids, attention_mask=attention_mask, **{CACHE: cache})
        return [self.read_answer(said, prompt) for said, prompt in zip(output.tolist(), prompts, strict=True)]

    def read_answer(self, said: list[int], prompt: Prompt) -> Answer:
        """Reads the tokens of an answer; without masks, which most models do not give."""
        text: str = self.processor.decode(said, skip_special_tokens=True)
        size = prompt.prefixes[-1].image_size if prompt.prefixes else (0, 0)
        return Answer(text.strip(), np.zeros((0, *size), bool))

    def _call(self, prompts: Sequence[Prompt], sampling: Sampling, **inputs: Any) -> Tensor:
        """Tokens [prompts, new] that the model says."""
        room = self.limit - max(len(prompt.ids) for prompt in prompts)
        options = {**sampling.options, "max_new_tokens": min(sampling.max_new_tokens, room)}
        pad = self.processor.tokenizer.pad_token_id
        output = self.model.generate(pad_token_id=pad, **inputs, **self.generation_inputs(prompts), **options)
        new: Tensor = output[:, inputs["input_ids"].shape[1] :]
        return new

    @torch.no_grad()
    def prefill(self, prompt: Prompt) -> Context:
        """Runs the model over all of a prompt that is not in its context."""
        context = self._fitting_context(prompt)
        ids = prompt.ids[len(context.ids) :]
        prefixes = prompt.prefixes[context.ids.count(self.image_end_id) :]
        return Context(prompt.ids, self.fill(fork_cache(context.cache), ids, prefixes)) if ids else context

    def _with_images(self, prompt: Prompt) -> Context:
        """Context of a prompt that holds all its images."""
        context = self._fitting_context(prompt)
        end = self.end_of_images(prompt.ids)
        return context if end <= len(context.ids) else self.prefill(Prompt(prompt.ids[:end], prompt.prefixes, context))

    def _fitting_context(self, prompt: Prompt) -> Context:
        """Context of a prompt if it begins so, or else an empty one."""
        if prompt.context is not None and prompt.context.fits(prompt.ids):
            return prompt.context
        return Context([], DynamicCache(config=self.config))

    def _disturb_each_other(self, rows: Sequence[list[int]], known: Sequence[int], new_tokens: int) -> bool:
        """Whether prompts in one batch would change each other's answers."""
        texts = [len(row) - prefix for row, prefix in zip(rows, known, strict=True)]
        window = getattr(self.config, "sliding_window", None)
        # Padding between an image and its question takes a place in the window.
        is_bound = window is not None and max(known) + max(texts) + new_tokens > window and min(texts) < max(texts)
        # All would have to be as short as the longest prompt leaves room for.
        return len(rows) > 1 and (is_bound or max(map(len, rows)) + new_tokens > self.limit)


@contextmanager
def explain_tokenizer(folder: Path) -> Iterator[None]:
    """Turns whatever goes wrong while a tokenizer is loaded into a `CheckpointError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder} has no tokenizer that can be read, which chat needs ({reason})") from None


class _StopWhenSet(StoppingCriteria):
    """Ends generation once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def load_engine(source: ChatSource, device: str, dtype: str, options: dict[str, Any]) -> Engine:
    """Loads what `find_chat` has found, with the adapter where there is one; `options` are those of its family.

    Raises:
        CheckpointError: If model or adapter cannot be used.
        UserError: If an option is not for this family.
    """
    source.family.require_options(options)
    where = choose_device(device)
    engine = source.family.engine_class().load(source.name, where, choose_dtype(dtype, where), **options)
    if source.adapter is not None:
        engine.model = _merge_adapter(engine.model, source.adapter)
    return engine


def _merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Adds the weights of an adapter to those of its model."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again with PEFT's save_pretrained")
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(f"{folder} is an adapter, which needs PEFT: pip install peft") from None
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} does not fit its model: {reason}") from None
    adapted: PreTrainedModel = merged.eval().requires_grad_(False)
    return adapted
