"""Training batches: images, conversations about them in which expressions are answered with masks, and the masks."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evals.referring.data import ReferringData
from evals.segmentation.batches import Sampler, make_ahead
from sail_encoder.models.pixel_sail.processing_pixel_sail import PixelSailProcessor
from sail_encoder.models.pixel_sail.questions import ANSWER, NO_TARGET, refer

Batch = Mapping[str, Any]
"""Inputs of `PixelSailForCausalLM.forward`, `labels` and `mask_labels` among them, in the memory of the CPU."""


@dataclass(frozen=True, eq=False)
class Conversation:
    """One image of a batch.

    Attributes:
        image: The image.
        turns: Questions and answers.
        masks: bool [q, height, width], one per `[SEG]` in the answers.
    """

    image: Image.Image
    turns: list[tuple[str, str]]
    masks: Tensor

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as transformers' chat templates take it, the image in its first question."""
        messages: list[dict[str, Any]] = []
        for question, answer in self.turns:
            image = [] if messages else [{"type": "image", "image": self.image}]
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages


class ReferringBatches:
    """Batches of conversations; what a batch holds depends on its number and the seed alone.

    Args:
        data: Images and expressions.
        processor: Turns conversations into inputs.
        batch_size: Images in a batch.
        expressions: Expressions per image at most, in random order.
        seed: Decides the order of the images, and which expressions are taken.
    """

    def __init__(
        self, data: ReferringData, processor: PixelSailProcessor, batch_size: int, expressions: int, seed: int
    ) -> None:
        self.data, self.processor, self.batch_size, self.expressions = data, processor, batch_size, expressions
        self.sampler = Sampler(len(data), seed)

    def make(self, position: int) -> Conversation:
        """One image and what is said about it; called in threads."""
        index, rng = self.sampler.draw(position)
        shown = self.data.read(index)
        chosen = rng.permutation(len(shown.expressions))[: self.expressions]
        has_target = np.array([shown.masks[place].any() for place in chosen])
        turns = [
            (refer(shown.expressions[place].text), ANSWER if has else NO_TARGET)
            for place, has in zip(chosen, has_target, strict=True)
        ]
        return Conversation(shown.image, turns, torch.from_numpy(np.ascontiguousarray(shown.masks[chosen[has_target]])))

    def between(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The batches with these numbers, the last one left out."""
        with closing(make_ahead(self.make, first, last, self.batch_size)) as ready:
            for conversations in ready:
                yield self.collate(conversations)

    def collate(self, conversations: list[Conversation]) -> Batch:
        """Inputs for a batch of conversations; only answers are learned."""
        batch = self.processor.apply_chat_template(
            [conversation.messages for conversation in conversations],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        is_answer = torch.as_tensor(batch.pop("assistant_masks")).bool()
        labels = batch["input_ids"].masked_fill(~is_answer, -100)
        return {**batch, "labels": labels, "mask_labels": [conversation.masks for conversation in conversations]}
