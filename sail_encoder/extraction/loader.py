"""The loader: images read ahead by threads, grouped under a token budget, and run batch by batch.

Extraction, sweeps, dense evaluation and training read their images through it, so that order, budget, read-ahead and
what happens when memory runs out are the same for all of them.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Generic, TypeVar

import torch

from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Batch, Prepared, group_consecutive
from sail_encoder.io.devices import count_readers, is_out_of_memory
from sail_encoder.io.errors import ImageError
from sail_encoder.io.threads import map_ahead, prefetch

T = TypeVar("T")
R = TypeVar("R")

BATCHES_AHEAD = 2
IMAGES_AHEAD_PER_READER = 4


@dataclass(frozen=True, eq=False)
class Loaded(Generic[T]):
    """An item and its image, or why there is none.

    Attributes:
        item: The item.
        image: Its image, None where that could not be read.
        error: Why.
        cost: Tokens that it adds to a batch; a failure counts as one, so that a batch of nothing else ends too.
    """

    item: T
    image: Prepared | None
    error: str | None = None
    cost: int = 1


Group = list[Loaded[T]]
"""Items that were read together."""


class PackedLoader(Generic[T]):
    """Reads images and hands them on in batches under a token budget.

    Args:
        backbone: Prepares and collates images.
        prepare: Gives the image of an item; called in threads. Its `ImageError` or `OSError` makes the item a failure.
        token_budget: Tokens in one batch; by default what memory allows. Halved from where memory runs out.
        readers: Threads that read; by default one for each core that this process may use.
    """

    def __init__(
        self,
        backbone: VisionBackbone,
        prepare: Callable[[T], Prepared],
        token_budget: int | None = None,
        readers: int | None = None,
    ) -> None:
        self.backbone, self.prepare = backbone, prepare
        self.token_budget = token_budget or backbone.default_token_budget()
        self.readers = readers or count_readers()

    def run(
        self, stretches: Iterable[Iterable[T]], function: Callable[[Batch], R]
    ) -> Generator[tuple[Group[T], Batch | None, R | None], None, None]:
        """Runs a function on each batch, in order.

        Args:
            stretches: Items; a batch never spans two stretches.
            function: What to do with a batch, such as a forward pass; what does not fit into memory is tried again in
                halves, now and from here on.

        Yields:
            Items that were read together, their batch and what the function returned; no batch where no image could be
            read, and nothing returned for a single image that does not fit into memory, which is a failure then.
        """
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self.readers, "read"))
            ready = stack.enter_context(closing(prefetch(self._read(stretches, pool), BATCHES_AHEAD)))
            for group, batch in ready:
                yield from self._run(group, batch, function)

    def _read(
        self, stretches: Iterable[Iterable[T]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Group[T], Batch | None]]:
        """Groups and their batches, read and collated."""
        numbered = ((number, item) for number, stretch in enumerate(stretches) for item in stretch)
        loaded = map_ahead(self._load, numbered, pool, IMAGES_AHEAD_PER_READER * self.readers)
        for _, stretch in groupby(loaded, key=itemgetter(0)):
            items = (one for _, one in stretch)
            for group in group_consecutive(items, attrgetter("cost"), self.token_budget):
                yield group, self._collate(group)

    def _load(self, numbered: tuple[int, T]) -> tuple[int, Loaded[T]]:
        number, item = numbered
        try:
            image = self.prepare(item)
            return number, Loaded(item, image, cost=image.cost)
        except (ImageError, OSError) as error:
            return number, Loaded(item, None, error.reason if isinstance(error, ImageError) else str(error))

    def _collate(self, group: Group[T]) -> Batch | None:
        images = [one.image for one in group if one.image is not None]
        if not images:
            return None
        batch = self.backbone.collate(images)
        return batch.pin_memory() if self.backbone.device.type == "cuda" else batch

    def _run(
        self, group: Group[T], batch: Batch | None, function: Callable[[Batch], R]
    ) -> Iterator[tuple[Group[T], Batch | None, R | None]]:
        cost = sum(one.cost for one in group)
        if batch is None:
            yield group, None, None
        elif cost > self.token_budget and len(group) > 1:
            for some in group_consecutive(group, attrgetter("cost"), self.token_budget):
                yield from self._run(some, self._collate(some), function)
        elif (result := self._try(function, batch)) is not None:
            yield group, batch, result
        elif len(group) > 1:
            self.token_budget = max(1, min(self.token_budget, cost) // 2)
            yield from self._run(group, batch, function)
        else:
            reason = f"out of memory with its {cost} patches alone; lower --max_tokens or --resize"
            yield [Loaded(group[0].item, None, reason)], None, None

    def _try(self, function: Callable[[Batch], R], batch: Batch) -> R | None:
        """Result of the function, None where it did not fit into memory."""
        try:
            return function(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause, so that the error no longer holds on to the tensors that did not fit.
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        return None
