"""A conversation with SAIL: every token of it is encoded once, whatever is asked next."""

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, StoppingCriteria
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

from sail_encoder.chat.joining import join_caches, pad_behind_prefixes
from sail_encoder.chat.questions import check_prompt
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.decoding import ImageLike, read_image
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.errors import UserError, explain_damage
from sail_encoder.io.hub import TINY, find_checkpoint
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.sail.checkpoint import load_language_model, open_sail
from sail_encoder.models.sail.config_file import read_preprocessing
from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.positions import Grid
from sail_encoder.models.sail.processing_sail import SailProcessor


@dataclass(frozen=True, eq=False)
class _Image:
    """An image of the next turn; its pixels are None if it is in the cache already."""

    grid: Grid
    pixels: Tensor | None

    @property
    def cached_tokens(self) -> int:
        """Tokens of it that are in the cache."""
        return self.grid[0] * self.grid[1] + 2 if self.pixels is None else 0


class Chat:
    """A conversation about images.

    Args:
        model: The model, on its device.
        processor: Its processor.

    Attributes:
        messages: The conversation so far, in transformers' format.
    """

    def __init__(self, model: SailForCausalLM, processor: SailProcessor) -> None:
        self.model = model
        self.processor = processor
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was shown and said."""
        self.messages: list[dict[str, Any]] = []
        self._rendered = ""
        self._ids: list[int] = []
        self._grids: list[Grid] = []
        self._cache = DynamicCache(config=self.model.config)
        self._next_images: list[_Image] = []

    def fork(self) -> "Chat":
        """A conversation that goes on from here on its own; what is encoded so far is shared, not copied."""
        other = Chat(self.model, self.processor)
        other.messages = list(self.messages)
        other._rendered, other._ids, other._grids = self._rendered, list(self._ids), list(self._grids)
        other._cache = fork_cache(self._cache)
        other._next_images = list(self._next_images)
        return other

    def look(self, image: ImageLike) -> None:
        """Shows an image, which the next question is about. The first one is encoded at once, before any text.

        Raises:
            ImageError: If it cannot be read.
            UserError: If the conversation has no room for it.
        """
        picture, _ = read_image(image)
        patches = self.processor.image_processor(picture, return_tensors="pt")
        pixels = patches["pixel_values"].to(self.model.device)
        rows, columns = patches["image_grid_hw"][0].tolist()
        self.check_room(len(self._ids) + rows * columns + 2)
        if self._ids or self._next_images:
            self._next_images.append(_Image((rows, columns), pixels))
            return
        start, patch, end = self.model.config.vision_token_ids
        with torch.no_grad():
            self._cache = self.model.model.encode_prefix(pixels, patches["image_grid_hw"])
        self._ids = [start, *[patch] * (rows * columns), end]
        self._next_images.append(_Image((rows, columns), None))

    def ask(
        self,
        prompt: str,
        image: ImageLike | None = None,
        sampling: Sampling = Sampling(),
        streamer: BaseStreamer | None = None,
        stop: threading.Event | None = None,
    ) -> str:
        """Asks a question and returns the answer; a turn that fails leaves the conversation as it was.

        Args:
            prompt: The question.
            image: An image to show first.
            sampling: How the answer is chosen.
            streamer: Receives the answer's tokens as they come.
            stop: Ends the answer where it is, once set.

        Raises:
            UserError: If the prompt is empty or stands for an image, or the conversation has no room for it.
        """
        check_prompt(prompt)
        if image is not None:
            # On a fork, so that an image whose question fails is not shown twice when it is asked again.
            shown = self.fork()
            shown.look(image)
            answer = shown.ask(prompt, None, sampling, streamer, stop)
            vars(self).update(vars(shown))
            return answer
        messages, ids = self._next_turn(prompt)
        options = self.options_for(len(ids), sampling)
        cache = fork_cache(self._cache)
        said = self._generate(ids, cache, options, streamer, stop)
        answer = self.processor.decode(said, skip_special_tokens=True).strip()
        self._accept(messages, answer, [*ids, *said], cache)
        return answer

    def check_question(self, prompt: str) -> None:
        """Raises a `UserError` if a prompt is empty or stands for an image, or there is no room for it."""
        check_prompt(prompt)
        self.check_room(len(self._next_turn(prompt)[1]) + 1)

    def _next_turn(self, prompt: str) -> tuple[list[dict[str, Any]], list[int]]:
        """The conversation with one more question, as messages and as token ids."""
        content = [*({"type": "image"} for _ in self._next_images), {"type": "text", "text": prompt}]
        messages = [*self.messages, {"role": "user", "content": content}]
        return messages, self._ids + self._new_ids(self._render(messages))

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False)

    def _new_ids(self, rendered: str) -> list[int]:
        """Token ids of what the conversation's text has gained, without images that are in the cache."""
        new = rendered.removeprefix(self._rendered)
        [prompt] = self.processor.tokenize([new], [image.grid for image in self._next_images])
        return prompt.ids[sum(image.cached_tokens for image in self._next_images) :]

    def _generate(
        self,
        ids: list[int],
        cache: DynamicCache,
        options: dict[str, Any],
        streamer: BaseStreamer | None,
        stop: threading.Event | None,
    ) -> list[int]:
        grids = [*self._grids, *(image.grid for image in self._next_images)]
        pixels = [image.pixels for image in self._next_images if image.pixels is not None]
        input_ids = torch.tensor([ids], device=self.model.device)
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values=torch.cat(pixels) if pixels else None,
            image_grid_hw=torch.tensor(grids) if grids else None,
            streamer=streamer,
            stopping_criteria=[_StopWhenSet(stop)] if stop is not None else None,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **{CACHE: cache},
            **options,
        )
        return output[0, len(ids) :].tolist()

    def _accept(self, messages: list[dict[str, Any]], answer: str, ids: list[int], cache: DynamicCache) -> None:
        end = self.processor.tokenizer.eos_token_id
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self._rendered = self._render(self.messages)
        self._ids = ids if ids[-1] == end else [*ids, end]
        self._grids += [image.grid for image in self._next_images]
        self._next_images = []
        self._cache = cache

    @property
    def limit(self) -> int:
        """Tokens of the longest conversation that the model is meant for."""
        return int(self.model.config.max_position_embeddings)

    def options_for(self, length: int, sampling: Sampling) -> dict[str, Any]:
        """The arguments of `generate` for a prompt of so many tokens; no answer goes beyond the limit.

        Raises:
            UserError: If there is no room for an answer.
        """
        self.check_room(length + 1)
        return {**sampling.options, "max_new_tokens": min(sampling.max_new_tokens, self.limit - length)}

    def check_room(self, tokens: int) -> None:
        """Raises a `UserError` if a conversation of so many tokens is longer than the model is meant for."""
        if tokens > self.limit:
            raise UserError(
                f"the conversation would have {tokens:,} tokens, more than the {self.limit:,} of this model; shorten "
                "the prompt, start anew, or lower --max_tokens for smaller images"
            )


def fork_cache(cache: DynamicCache) -> DynamicCache:
    """A cache with the same tensors; they are replaced when it grows, never written to."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork


class _StopWhenSet(StoppingCriteria):
    """Ends generation once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def ask_each(chat: Chat, image: ImageLike, prompts: list[str], sampling: Sampling = Sampling()) -> list[str]:
    """Asks independent questions about one image, which is encoded once."""
    base = Chat(chat.model, chat.processor)
    base.look(image)
    return [base.fork().ask(prompt, sampling=sampling) for prompt in prompts]


@torch.no_grad()
def ask_together(chats: Sequence[Chat], prompts: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
    """Asks each of several conversations a question, in one batch; the conversations stay as they are.

    Args:
        chats: Conversations of one model, each with one image that is encoded, or none; one may appear several times.
        prompts: A question for each.
        sampling: How the answers are chosen.

    Raises:
        UserError: If a prompt is empty or stands for an image, or a conversation has no room for it.
    """
    for prompt in prompts:
        check_prompt(prompt)
    rows = [chat._next_turn(prompt)[1] for chat, prompt in zip(chats, prompts, strict=True)]
    prefixes = [len(chat._ids) for chat in chats]
    options = chats[0].options_for(max(map(len, rows)), sampling)
    if _do_not_mix(chats[0], rows, prefixes, sampling.max_new_tokens):
        return [chat.fork().ask(prompt, sampling=sampling) for chat, prompt in zip(chats, prompts, strict=True)]
    model, processor = chats[0].model, chats[0].processor
    pad = processor.tokenizer.pad_token_id
    input_ids, attention_mask = (part.to(model.device) for part in pad_behind_prefixes(rows, prefixes, pad))
    grids = [image.grid for chat in chats for image in chat._next_images]
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        image_grid_hw=torch.tensor(grids) if grids else None,
        pad_token_id=pad,
        **{CACHE: join_caches([chat._cache for chat in chats], model.config)},
        **options,
    )
    texts = processor.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _do_not_mix(chat: Chat, rows: list[list[int]], prefixes: list[int], new_tokens: int) -> bool:
    """Whether prompts in one batch would change each other's answers."""
    texts = [len(row) - prefix for row, prefix in zip(rows, prefixes, strict=True)]
    window = chat.model.config.sliding_window
    # Padding between an image and its question takes a place in the window.
    is_bound = window is not None and max(prefixes) + max(texts) + new_tokens > window and min(texts) < max(texts)
    # All would have to be as short as the longest prompt leaves room for.
    return len(rows) > 1 and (is_bound or max(map(len, rows)) + new_tokens > chat.limit)


def load_chat(
    model: str = TINY,
    device: str = "auto",
    dtype: str = "auto",
    max_tokens: int | None = None,
    sliding_window: int | Literal["config", "none"] = "config",
) -> Chat:
    """Loads a model to talk to.

    Args:
        model: `sail-tiny`, a folder, or a Hub name.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        max_tokens: Patches of an image at most; by default the model's own limit.
        sliding_window: How far back text sees: as the configuration says, all the way (`none`), or this many tokens.
            With SAIL-7B's 4,096 an answer about an image of nearly as many patches no longer sees its first rows.

    Raises:
        CheckpointError: If the checkpoint cannot be used, or has no language head.
    """
    folder = find_checkpoint(model)
    checkpoint = open_sail(folder)
    if sliding_window != "config":
        checkpoint.config.sliding_window = None if sliding_window == "none" else sliding_window
    where = choose_device(device)
    network = load_language_model(checkpoint, where, choose_dtype(dtype, where))
    preprocessing = {"patch_size": checkpoint.config.vision_patch_size, **read_preprocessing(folder)}
    if max_tokens is not None:
        preprocessing["max_tokens"] = max_tokens
    with explain_damage(f"cannot read the tokenizer in {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return Chat(network, SailProcessor(SailImageProcessor(**preprocessing), tokenizer))
