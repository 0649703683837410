"""Read ahead, pack, encode, write behind: images go in, features arrive in the store."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter

import torch
from torch import Tensor

from sail_encoder.backbones.base import Encoded, VisionBackbone
from sail_encoder.backbones.packing import Pack, pack_consecutive
from sail_encoder.extraction.plan import Request
from sail_encoder.images.pixels import Array, PatchedImage
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.devices import is_out_of_memory
from sail_encoder.io.errors import ImageError
from sail_encoder.io.threads import Behind, map_ahead, prefetch
from sail_encoder.store.records import Record
from sail_encoder.store.store import FeatureStore

PACKS_AHEAD = 2
PACKS_BEHIND = 2
IMAGES_AHEAD_PER_READER = 4


@dataclass(frozen=True, eq=False)
class ReadImage:
    """An image that was read, or why it was not."""

    record: Record
    patched: PatchedImage | None

    @property
    def tokens(self) -> int:
        """What it adds to a pack."""
        return 0 if self.patched is None else len(self.patched.patches)


@dataclass(frozen=True, eq=False)
class Group:
    """Images that are encoded together; `pack` is None if none of them could be read."""

    images: list[ReadImage]
    pack: Pack | None

    @property
    def tokens(self) -> int:
        """Patches of all images."""
        return sum(image.tokens for image in self.images)


@dataclass(frozen=True, eq=False)
class OnHost:
    """Features on their way from the device.

    Attributes:
        values: [layers, total patches or images, C].
        finite: bool [total patches or images].
        arrived: What to wait for before reading either.
    """

    values: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def copy(cls, values: Tensor) -> "OnHost":
        """Starts the copy without waiting for it."""
        finite = values.isfinite().all(dim=2).all(dim=0)
        # Without an event to wait for, as on MPS, the values could be read before they have arrived.
        on_host, finite = (tensor.to("cpu", non_blocking=values.is_cuda) for tensor in (values, finite))
        arrived = None
        if values.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(values.device))
        return cls(on_host, finite, arrived)


class Pipeline:
    """Encodes images into a store.

    Args:
        backbone: The model.
        store: Where results go.
        request: What is asked.
        token_budget: Patches in one forward pass.
        readers: Threads that read images.
        on_done: Called from the writing thread with the records of each pack that is safe.
    """

    def __init__(
        self,
        backbone: VisionBackbone,
        store: FeatureStore,
        request: Request,
        token_budget: int,
        readers: int,
        on_done: Callable[[Sequence[Record]], None],
    ) -> None:
        self.backbone = backbone
        self.store = store
        self.request = request
        self.token_budget = token_budget
        self.readers = readers
        self.on_done = on_done
        self.stop = threading.Event()

    def run(self, stretches: Sequence[Sequence[ImageFile]]) -> None:
        """Encodes all images, or those up to the moment at which `stop` is set; what was begun is finished."""
        with ExitStack() as stack:
            reading = stack.enter_context(ThreadPoolExecutor(self.readers, "read"))
            writing = Behind(stack.enter_context(ThreadPoolExecutor(1, "write")), PACKS_BEHIND)
            groups = stack.enter_context(closing(prefetch(self._read_groups(stretches, reading), PACKS_AHEAD)))
            for group in groups:
                for part, result in self._encode_group(group):
                    writing.submit(self._save, part, result)
                if self.stop.is_set():
                    break
            writing.drain()

    def _read_groups(self, stretches: Sequence[Sequence[ImageFile]], pool: ThreadPoolExecutor) -> Iterator[Group]:
        """Images that are encoded together, read and packed; a group never spans a gap between stretches."""
        flat = (image for stretch in stretches for image in stretch)
        images = map_ahead(self._read, flat, pool, IMAGES_AHEAD_PER_READER * self.readers)
        for stretch in stretches:
            for group in pack_consecutive(islice(images, len(stretch)), attrgetter("tokens"), self.token_budget):
                yield self._pack(group)

    def _read(self, image: ImageFile) -> ReadImage:
        record = Record.begin(image)
        try:
            patched = self.backbone.prepare(image.open(), self.request.resize, self.request.exif_rotate)
        except (ImageError, OSError) as error:
            reason = error.reason if isinstance(error, ImageError) else str(error)
            return ReadImage(replace(record, error=reason), None)
        record = replace(
            record,
            grid=patched.grid,
            image_size=patched.image_size,
            resized_size=patched.resized_size,
            exif_orientation=patched.exif_orientation,
        )
        return ReadImage(record, patched)

    def _pack(self, images: list[ReadImage]) -> Group:
        patched = [image.patched for image in images if image.patched is not None]
        return Group(images, Pack.of(patched, self.backbone.device.type == "cuda") if patched else None)

    def _encode_group(self, group: Group) -> Iterator[tuple[Group, OnHost | None]]:
        """Encodes a group in one pass; where memory does not allow that, in halves, now and from here on."""
        if group.pack is None:
            yield group, None
        elif group.tokens > self.token_budget and len(group.images) > 1:
            for part in pack_consecutive(group.images, attrgetter("tokens"), self.token_budget):
                yield from self._encode_group(self._pack(part))
        elif (result := self._try_encode(group.pack)) is not None:
            yield group, result
        elif len(group.images) > 1:
            self.token_budget = max(1, min(self.token_budget, group.tokens) // 2)
            yield from self._encode_group(group)
        else:
            (image,) = group.images
            reason = f"out of memory with its {image.tokens} patches alone; lower --max_tokens or --resize"
            yield Group([ReadImage(replace(image.record, error=reason), None)], None), None

    def _try_encode(self, pack: Pack) -> OnHost | None:
        """The features of a pack on their way to the host, None where they did not fit into memory."""
        try:
            encoded = self.backbone.encode_packed(pack, self.request.layers, self.request.norm)
            return OnHost.copy(self._finalize(encoded, pack))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause, so that the error no longer holds on to the tensors that did not fit.
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.no_grad()
    def _finalize(self, encoded: Encoded, pack: Pack) -> Tensor:
        """[layers, total patches or images, C] in the type that is stored."""
        states = torch.stack([encoded.patches[layer] for layer in self.request.layers])
        if self.request.pool != "none":
            lengths = torch.tensor([[rows * columns for rows, columns in pack.grids]], device=states.device)
            lengths = lengths.repeat(len(states), 1)
            states = torch.segment_reduce(states.float(), self.request.pool, lengths=lengths, axis=1)
        return states.to(getattr(torch, self.request.dtype))

    def _save(self, group: Group, result: OnHost | None) -> None:
        """Runs in the writing thread: brings features and records together and stores them."""
        arrays = iter(self._split(group, result))
        records, stored = [], []
        for image in group.images:
            array = next(arrays) if image.patched is not None else None
            record = image.record
            if image.patched is not None and array is None:
                record = replace(record, error=f"its features do not fit {self.request.dtype}, or are not finite")
            records.append(record)
            stored.append(array)
        self.on_done(self.store.write(records, stored))

    def _split(self, group: Group, result: OnHost | None) -> list[Array | None]:
        """One array for each image that was encoded, None where a value is not finite."""
        if group.pack is None or result is None:
            return []
        if result.arrived is not None:
            result.arrived.synchronize()
        pooled = self.request.pool != "none"
        lengths = [1 if pooled else rows * columns for rows, columns in group.pack.grids]
        values, finite = result.values.split(lengths, dim=1), result.finite.split(lengths)
        shapes = [(-1,) if pooled else (*grid, -1) for grid in group.pack.grids]
        layers = () if len(self.request.layers) == 1 else (len(self.request.layers),)
        arrays = [
            part.reshape(*layers, *shape).numpy() if fits.all() else None
            for part, fits, shape in zip(values, finite, shapes, strict=True)
        ]
        return group.pack.unsort(arrays)
