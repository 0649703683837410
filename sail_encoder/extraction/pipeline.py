"""From images to the store: the loader encodes, a thread writes what has been encoded."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Batch, Prepared
from sail_encoder.backbones.pooling import patch_states, pool_layers
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.extraction.loader import Group, PackedLoader
from sail_encoder.images.decoding import Array
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.threads import BackgroundWriter
from sail_encoder.store.records import Record
from sail_encoder.store.store import FeatureStore

BATCHES_TO_WRITE = 2


OnHost = tuple[Tensor, Tensor, torch.cuda.Event | None]
"""Features [layers, total patches or images, C] on their way from the device; which patches or images are finite; and
what to wait for before reading either.
"""


def copy_to_host(values: Tensor) -> OnHost:
    """Starts the copy without waiting for it."""
    finite = values.isfinite().all(dim=2).all(dim=0)
    # Without an event to wait for, as on MPS, the values could be read before they have arrived.
    on_host, finite = (tensor.to("cpu", non_blocking=values.is_cuda) for tensor in (values, finite))
    arrived = None
    if values.is_cuda:
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(values.device))
    return on_host, finite, arrived


class Pipeline:
    """Encodes images into a store.

    Args:
        backbone: The model.
        store: Where results go.
        features: What is asked of each image.
        on_done: Called from the writing thread with the records of each batch that is safe.
        token_budget: Patches in one forward pass; by default what memory allows.
        readers: Threads that read images; by default one for each core.
    """

    def __init__(
        self,
        backbone: VisionBackbone,
        store: FeatureStore,
        features: FeatureSpec,
        on_done: Callable[[Sequence[Record]], None],
        token_budget: int | None = None,
        readers: int | None = None,
    ) -> None:
        self.backbone, self.store, self.features, self.on_done = backbone, store, features, on_done
        self.loader = PackedLoader(backbone, self._prepare, token_budget, readers)
        self.stop = threading.Event()

    def run(self, stretches: Sequence[Sequence[ImageFile]]) -> None:
        """Encodes all images, or those up to the moment at which `stop` is set; what was begun is finished."""
        with ThreadPoolExecutor(1, "write") as writer, closing(self.loader.run(stretches, self._encode)) as encoded:
            writing = BackgroundWriter(writer, BATCHES_TO_WRITE)
            for group, batch, result in encoded:
                writing.submit(self._save, group, batch, result)
                if self.stop.is_set():
                    break
            writing.drain()

    def _prepare(self, image: ImageFile) -> Prepared:
        return self.backbone.prepare(image.open(), self.features.size, self.features.exif_rotate)

    @torch.no_grad()
    def _encode(self, batch: Batch) -> OnHost:
        """Features of a batch in the type that is stored, on their way to the host."""
        layers, how = self.features.layers, self.features.pool
        encoded = self.backbone.forward(batch, layers, self.features.norm)
        if how == "none":
            states = patch_states(encoded, layers, batch.lengths, self.features.class_token)
        else:
            states = pool_layers(encoded, layers, batch.lengths, how)
        return copy_to_host(torch.stack(states).to(getattr(torch, self.features.store_dtype)))

    def _save(self, group: Group[ImageFile], batch: Batch | None, result: OnHost | None) -> None:
        """Runs in the writing thread: brings features and records together and stores them."""
        arrays = iter(self._split(batch, result) if batch is not None and result is not None else [])
        records, stored = [], []
        for one in group:
            record, array = Record.begin(one.item), None
            if one.image is None:
                record = replace(record, error=one.error)
            else:
                array, geometry = next(arrays), one.image.geometry
                record = replace(
                    record,
                    grid=geometry.grid,
                    image_size=geometry.image_size,
                    resized_size=geometry.resized_size,
                    exif_orientation=geometry.exif_orientation,
                )
                if array is None:
                    reason = f"its features do not fit {self.features.store_dtype}, or are not finite"
                    record = replace(record, error=reason)
            records.append(record)
            stored.append(array)
        self.on_done(self.store.write(records, stored))

    def _split(self, batch: Batch, result: OnHost) -> list[Array | None]:
        """One array for each image that was encoded, None where a value is not finite."""
        features, are_finite, arrived = result
        if arrived is not None:
            arrived.synchronize()
        pooled = self.features.pool != "none"
        lengths = [1] * len(batch.lengths) if pooled else batch.lengths
        values, finite = features.split(lengths, dim=1), are_finite.split(lengths)
        shapes = [(-1,) if pooled else (*geometry.grid, -1) for geometry in batch.geometries]
        layers = () if len(self.features.layers) == 1 else (len(self.features.layers),)
        arrays = [
            part.reshape(*layers, *shape).numpy() if fits.all() else None
            for part, fits, shape in zip(values, finite, shapes, strict=True)
        ]
        return batch.unsort(arrays)
