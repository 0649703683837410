"""Crops of images and their features, for probes that see another crop of an image in each epoch."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from evals.datasets.labelled import LabelledImages
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Batch
from sail_encoder.backbones.pooling import pool_layers
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.extraction.loader import PackedLoader
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import ImageError, UserError
from sail_encoder.io.signals import leave_signals_to_parent

Item = tuple[int, int]
"""Row of a sample, and a number that decides its augmentation."""


class CroppedImages(Dataset[tuple[Tensor | None, int]]):
    """Images cropped to one size, augmented where they are for training.

    An item is asked for by the row of a sample and the number of a step, which together with the seed decide its
    augmentation, so that neither the number of processes nor of workers, nor a resumed run, changes what comes.

    Args:
        dataset: The images.
        crop: Side of the crop in pixels.
        seed: Of the random crops and flips; None takes the center.
        test_resize: The shorter side that images are brought to before their center is taken; that of the crop by
            default.
        exif_rotate: Whether to turn photographs upright as their EXIF orientation says.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        crop: int,
        seed: int | None,
        test_resize: int | None = None,
        exif_rotate: bool = False,
    ) -> None:
        self.exif_rotate = exif_rotate
        self.images = {image.key: image for image in dataset.images.images}
        self.keys, self.seed = dataset.keys, seed
        bicubic = v2.InterpolationMode.BICUBIC
        steps: list[nn.Module] = [v2.RandomResizedCrop(crop, interpolation=bicubic), v2.RandomHorizontalFlip()]
        if seed is None:
            steps = [v2.Resize(test_resize or crop, bicubic), v2.CenterCrop(crop)]
        self.transform = v2.Compose(steps)

    def __getitem__(self, item: Item) -> tuple[Tensor | None, int]:
        row, step = item
        try:
            image, _ = read_image(self.images[self.keys[row]].open(), self.exif_rotate)
        except (ImageError, OSError):
            return None, row
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((self.seed or 0, step, row)).generate_state(1)[0]))
            cropped: Image.Image = self.transform(image)
        return torch.from_numpy(np.array(cropped)), row

    def load(self, batches: Iterable[list[Item]], workers: int) -> DataLoader[Any]:
        """Batches as `_collate` makes them, read by other processes."""
        return DataLoader(
            self,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=leave_signals_to_parent,
        )


def _collate(items: Sequence[tuple[Tensor | None, int]]) -> tuple[Tensor | None, Tensor, list[int]]:
    """Pixels uint8 [images, crop, crop, 3] of those that could be read, their rows, and the rows of the others."""
    good = [(pixels, row) for pixels, row in items if pixels is not None]
    unread = [row for pixels, row in items if pixels is None]
    stacked = torch.stack([pixels for pixels, _ in good]) if good else None
    return stacked, torch.tensor([row for _, row in good], dtype=torch.int64), unread


class CropEncoder:
    """Turns crops into what heads take.

    Args:
        backbone: The model.
        features: Which layers, and what is done with them.
        crop: Side of the crops in pixels.

    Raises:
        UserError: If patches do not tile the crops.
    """

    def __init__(self, backbone: VisionBackbone, features: FeatureSpec, crop: int) -> None:
        self.backbone, self.features, self.size = backbone, features, Resize((crop, crop))
        backbone.spec.grid((crop, crop), self.size)
        self.loader: PackedLoader[Array] = PackedLoader(backbone, lambda pixels: backbone.prepare(pixels, self.size))

    def dim(self, takes: str) -> int:
        """Channels of what heads take, `grids` or `vectors`."""
        layers = len(self.features.layers) if self.features.fuse == "concat" else 1
        return layers * self.backbone.spec.channels("none" if takes == "grids" else self.features.pool)

    def __call__(self, crops: Tensor, takes: str) -> Any:
        """Features of crops; as many in one pass as memory allows.

        Args:
            crops: uint8 [images, crop, crop, 3].
            takes: `grids` for the features of all patches [total patches, C] and how many each image has, `vectors` for
                pooled ones [images, C].
        """
        how = "none" if takes == "grids" else self.features.pool
        encoded = [states for _, _, states in self.loader.run([crops.numpy()], partial(self._encode, how))]
        if any(states is None for states in encoded):
            raise UserError("out of memory with a single crop; use a smaller --crop")
        states = torch.cat(encoded)  # type: ignore[arg-type]
        if takes == "grids":
            return states, torch.full((len(crops),), len(states) // len(crops))
        return states

    def _encode(self, how: str, batch: Batch) -> Tensor:
        """Fused states [total patches, C], or pooled ones [images, C], in float32."""
        layers = self.features.layers
        encoded = self.backbone.forward(batch, layers, self.features.norm)
        if how == "none":
            states = [encoded.patches[layer].float() for layer in layers]
        else:
            states = pool_layers(encoded, layers, batch.lengths, how)
        return torch.cat(states, 1) if self.features.fuse == "concat" else torch.stack(states).mean(0)
