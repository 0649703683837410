"""Training batches: images, conversations about them in which expressions are answered with masks, and the masks."""

from collections.abc import Generator, Mapping
from contextlib import closing
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


Conversation = tuple[Image.Image, list[tuple[str, str]], Tensor]
"""One image of a batch, questions about it and answers, and bool [q, height, width], a mask per `[SEG]` in these."""


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
        image, expressions, masks = self.data.read(index)
        chosen = rng.permutation(len(expressions))[: self.expressions]
        has_target = np.array([bool(expressions[place].targets) for place in chosen])
        answers = [ANSWER if has else NO_TARGET for has in has_target]
        turns = [(refer(expressions[place].text), answer) for place, answer in zip(chosen, answers, strict=True)]
        return image, turns, torch.from_numpy(masks[chosen[has_target]])

    def between(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The batches with these numbers, the last one left out."""
        with closing(make_ahead(self.make, first, last, self.batch_size)) as ready:
            for conversations in ready:
                yield self.collate(conversations)

    def collate(self, conversations: list[Conversation]) -> Batch:
        """Inputs for a batch of conversations; only answers are learned."""
        batch = self.processor.apply_chat_template(
            [_messages_of(image, turns) for image, turns, _ in conversations],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        is_answer = torch.as_tensor(batch.pop("assistant_masks")).bool()
        labels = batch["input_ids"].masked_fill(~is_answer, -100)
        return {**batch, "labels": labels, "mask_labels": [masks for *_, masks in conversations]}


def _messages_of(image: Image.Image, turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """A conversation as transformers' chat templates take it, the image in its first question."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        shown = [] if messages else [{"type": "image", "image": image}]
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages
