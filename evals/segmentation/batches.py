"""Batches for training a dense head: online through the frozen backbone, or from grids that were extracted once.

What a batch holds depends only on the seed and on its number. So a run that was stopped goes on with the batches that
an uninterrupted one would have seen, whatever was read ahead when it stopped.
"""

import os
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from evals.errors import DatasetError
from evals.features import extract_missing
from evals.segmentation.augment import Augmentation, choose_crop, pad
from evals.segmentation.data import SegmentationData
from evals.segmentation.pairs import Sample
from heads.dense import IGNORE
from heads.dense.segmenter import Segmenter
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Prepared
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.extraction.cost import feature_bytes, look_at_some
from sail_encoder.extraction.loader import PackedLoader
from sail_encoder.extraction.plan import Plan
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.images.sources import list_images
from sail_encoder.io.devices import count_readers
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import format_bytes
from sail_encoder.io.fingerprints import digest
from sail_encoder.io.threads import map_ahead, prefetch
from sail_encoder.store.reading import Entry, FeatureFolder

_BATCHES_AHEAD = 2

T = TypeVar("T")

Batch = tuple[list[Tensor], Tensor]
"""What a head is trained on: for each layer float32 [n, C, nh, nw]; and labels uint8 [n, height, width] of the same
field of view.
"""


class Batches(Protocol):
    """A source of batches."""

    def between(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The batches with these numbers, the last one left out."""


class Sampler:
    """An endless order of samples, a new permutation each epoch; any position is known without those before it.

    Args:
        count: How many samples there are.
        seed: Decides the permutations.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.permutation = lru_cache(2)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(count))

    def draw(self, position: int) -> tuple[int, np.random.Generator]:
        """The sample at a position, and the random numbers that belong to it."""
        epoch, place = divmod(position, self.count)
        return int(self.permutation(epoch)[place]), np.random.default_rng((self.seed, 1, position))


def make_ahead(make: Callable[[int], T], first: int, last: int, batch_size: int) -> Generator[list[T], None, None]:
    """Makes the samples of batches in threads, a few batches ahead.

    Args:
        make: One sample from its position in the order of samples.
        first: Number of the first batch.
        last: That after the last batch.
        batch_size: Samples in a batch.
    """
    readers = count_readers()
    with ThreadPoolExecutor(readers, "read") as pool:
        positions = range(first * batch_size, last * batch_size)
        samples = map_ahead(make, positions, pool, max(batch_size, 2 * readers))
        batches = (list(islice(samples, batch_size)) for _ in range(first, last))
        with closing(prefetch(batches, _BATCHES_AHEAD)) as ready:
            yield from ready


class OnlineBatches:
    """Augmented crops through the frozen backbone, as published protocols have it.

    Args:
        segmenter: Whose backbone and layers to use.
        data: Images and masks.
        augmentation: How images become crops; their sides are whole patches.
        batch_size: Crops in a batch.
        seed: Decides order and augmentation.
    """

    def __init__(
        self, segmenter: Segmenter, data: SegmentationData, augmentation: Augmentation, batch_size: int, seed: int
    ) -> None:
        self.segmenter, self.data, self.augmentation, self.batch_size = segmenter, data, augmentation, batch_size
        self.sampler = Sampler(len(data), seed)
        self.loader = PackedLoader(segmenter.backbone, self.prepare)

    def prepare(self, sample: tuple[int, Array]) -> Prepared:
        """Draws the crop at a position, and fills the place for its labels; called in threads."""
        position, labels = sample
        index, rng = self.sampler.draw(position)
        pixels, labels[:] = self.augmentation(self.data.read_image(index), self.data.read_labels(index), rng)
        return self.segmenter.backbone.prepare(pixels, Resize(self.augmentation.crop))

    def between(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Batches with these numbers; each is encoded in as many passes as memory asks for."""
        size, device = self.batch_size, self.segmenter.backbone.device
        batches = (
            [(number * size + place, np.empty(self.augmentation.crop, np.uint8)) for place in range(size)]
            for number in range(first, last)
        )
        with closing(self.loader.run(batches, self.segmenter.maps)) as groups:
            labels: list[Array] = []
            parts: list[list[Tensor]] = []
            for group, _, maps in groups:
                if failed := next((one for one in group if one.image is None), None):
                    index, _ = self.sampler.draw(failed.item[0])
                    raise UserError(f"{self.data.samples[index].image}: {failed.error}")
                assert maps is not None, "a batch of images that were read has been encoded"
                labels += [one.item[1] for one in group]
                parts.append(maps)
                if len(labels) == size:
                    layers = [torch.cat(some) for some in zip(*parts, strict=True)]
                    yield layers, _to_device(np.stack(labels), device)
                    labels, parts = [], []


class CachedBatches:
    """Crops of grids that were extracted once, some of them mirrored; the backbone does not run.

    Args:
        features: Grids of the images of `data`, with all layers that the head reads.
        data: Images and masks.
        crop: Rows and columns of patches of a crop; smaller grids are filled up with zeros that do not count.
        patch_size: Side of a patch in pixels.
        flip: Whether every second crop is mirrored.
        batch_size: Crops in a batch.
        seed: Decides order and augmentation.
        device: Where the head is.
    """

    def __init__(
        self,
        features: FeatureFolder,
        data: SegmentationData,
        crop: Size,
        patch_size: int,
        flip: bool,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.sampler = Sampler(len(data), seed)
        self.features = features
        self.entries = _entries_of(features, data)
        self.data = data
        self.crop = crop
        self.patch_size = patch_size
        self.flip = flip
        self.batch_size = batch_size
        self.device = device

    def make(self, position: int) -> tuple[Array, Array]:
        """Features [layers, rows, columns, C] in float16, and labels of one sample; called in threads."""
        index, rng = self.sampler.draw(position)
        entry, p = self.entries[index], self.patch_size
        size, crop = ((rows * p, columns * p) for rows, columns in (entry.grid, self.crop))
        (top, left, bottom, right), labels = choose_crop(self.data.read_labels(index), size, crop, rng, step=p)
        rows, columns = slice(top // p, bottom // p), slice(left // p, right // p)
        grids = [self.features.read(entry, layer, rows)[:, columns] for layer in self.features.layers]
        if self.flip and rng.random() < 0.5:
            grids, labels = [grid[:, ::-1] for grid in grids], labels[:, ::-1]
        return np.stack([pad(grid, self.crop, 0) for grid in grids]), pad(labels, crop, IGNORE)

    def between(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Batches with these numbers; a few are made ahead."""
        with closing(make_ahead(self.make, first, last, self.batch_size)) as ready:
            for batch in ready:
                grids, labels = (np.stack(arrays) for arrays in zip(*batch, strict=True))
                features = _to_device(grids, self.device).permute(1, 0, 4, 2, 3).float()
                yield list(features), _to_device(labels, self.device)


def _entries_of(features: FeatureFolder, data: SegmentationData) -> list[Entry]:
    """The entry of each sample's image, by its path."""
    root = features.settings["root"]
    known = {os.path.join(root, entry.path): entry for entry in features.entries}
    paths = [os.path.abspath(sample.image) for sample in data.samples]
    missing = [path for path in paths if path not in known]
    if missing:
        raise DatasetError(
            f"{features.folder} has no features of {len(missing):,} images, such as {missing[0]}; "
            f"{features.folder / 'failures.csv'} may say why"
        )
    return [known[path] for path in paths]


def _to_device(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def check_budget(samples: Sequence[Sample], spec: BackboneSpec, source: FeatureSpec, budget_gb: float) -> None:
    """Says what cached grids of these images take on disk, and holds it against the budget before anything is computed.

    Args:
        samples: The images.
        spec: What the backbone is.
        source: Which features.
        budget_gb: What they may take, in units of 10^9 bytes.

    Raises:
        UserError: If the budget does not hold them.
    """
    images = list_images([str(sample.image) for sample in samples]).images
    tokens, _, _ = look_at_some(images, spec, source.size)
    channels = spec.channels("none", source.class_token)
    needed = len(samples) * feature_bytes(tokens, channels, len(source.layers), source.store_dtype)
    text = (
        f"cached features of {len(samples):,} images, about {tokens:,.0f} patches of {channels:,} channels in "
        f"{len(source.layers)} layers each, take {format_bytes(needed)}"
    )
    if needed > budget_gb * 1e9:
        raise UserError(
            f"{text}, more than the {budget_gb:g} GB of --cache_gb; raise it, use fewer --layers, a smaller --resize, "
            "or --mode online"
        )
    print(f"{text}; the budget is {budget_gb:g} GB", file=sys.stderr)


def cache_grids(samples: Sequence[Sample], backbone: VisionBackbone, source: FeatureSpec, cache: Path) -> FeatureFolder:
    """Extracts what is missing of the grids of these images: a file per image, so that a crop reads only its rows.

    Args:
        samples: The images.
        backbone: The backbone.
        source: Which features.
        cache: Folder of all caches; these grids have one of their own in it, named after all that decides them, where
            other runs on the same features find them.

    Raises:
        SystemExit: If a signal has stopped the extraction; the same command goes on where it was.
    """
    precision = str(backbone.dtype).removeprefix("torch.")
    plan = Plan(
        list_images([str(sample.image) for sample in samples]), backbone.spec, replace(source, precision=precision)
    )
    paths = [os.path.abspath(sample.image) for sample in samples]
    return extract_missing(backbone, plan, cache / digest([plan.settings, paths], 12))
