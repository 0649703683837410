"""Crops of images and their features, for probes that see every image anew in each epoch."""

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
from evals.features import FeatureSettings
from heads.pooling import pool_grid
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.packing import Pack
from sail_encoder.images.pixels import patch_image, read_image
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import ImageError
from sail_encoder.io.signals import leave_signals_to_parent

Item = tuple[int, int]
"""Row of a sample, and a number that decides its augmentation."""


class CroppedImages(Dataset[tuple[Tensor | None, int]]):
    """Images brought to one size and cut into patches, augmented where they are for training.

    An item is asked for by the row of a sample and the number of a step, which together with the seed decide its
    augmentation, so that neither the number of processes nor of workers, nor a resumed run, changes what comes.

    Args:
        dataset: The images.
        patch_size: Side of a patch in pixels.
        crop: Side of the crop in pixels.
        seed: Of the random crops and flips; None takes the center.
        test_resize: The shorter side that images are brought to before their center is taken; that of the crop by
            default.
    """

    def __init__(
        self, dataset: LabelledImages, patch_size: int, crop: int, seed: int | None, test_resize: int | None = None
    ) -> None:
        self.images = {image.key: image for image in dataset.images.images}
        self.keys, self.patch_size, self.resize, self.seed = dataset.keys, patch_size, Resize((crop, crop)), seed
        self.resize.grid((crop, crop), patch_size)
        bicubic = v2.InterpolationMode.BICUBIC
        steps: list[nn.Module] = [v2.RandomResizedCrop(crop, interpolation=bicubic), v2.RandomHorizontalFlip()]
        if seed is None:
            steps = [v2.Resize(test_resize or crop, bicubic), v2.CenterCrop(crop)]
        self.transform = v2.Compose(steps)

    def __getitem__(self, item: Item) -> tuple[Tensor | None, int]:
        row, step = item
        try:
            image, _ = read_image(self.images[self.keys[row]].open())
        except (ImageError, OSError):
            return None, row
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((self.seed or 0, step, row)).generate_state(1)[0]))
            cropped: Image.Image = self.transform(image)
        return torch.from_numpy(patch_image(cropped, self.resize, self.patch_size).patches), row

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
    """Patches [images, patches, 3 * p * p] of those that could be read, their rows, and the rows of the others."""
    good = [(patches, row) for patches, row in items if patches is not None]
    unread = [row for patches, row in items if patches is None]
    stacked = torch.stack([patches for patches, _ in good]) if good else None
    return stacked, torch.tensor([row for _, row in good], dtype=torch.int64), unread


class CropEncoder:
    """Turns patches of crops into what heads take.

    Args:
        backbone: The model.
        layers: Block indices.
        settings: What is done with them.
        crop: Side of the crops in pixels.
    """

    def __init__(self, backbone: VisionBackbone, layers: Sequence[int], settings: FeatureSettings, crop: int) -> None:
        self.backbone, self.layers, self.settings, self.side = backbone, layers, settings, crop // backbone.patch_size
        self.dim = backbone.embed_dim * (len(layers) if settings.fuse == "concat" else 1)

    def __call__(self, patches: Tensor, takes: str) -> Any:
        """Features of images [images, patches, 3 * p * p]; as many in one pass as memory allows.

        Args:
            patches: Of the crops.
            takes: `grids` for the features of all patches and their numbers, `vectors` for pooled ones [images, C].
        """
        each = max(1, self.backbone.default_token_budget() // patches.shape[1])
        features = torch.cat([self._encode(some) for some in patches.split(each)])
        if takes == "grids":
            return features, torch.full((len(patches),), patches.shape[1])
        grids = features.unflatten(0, (len(patches), -1))
        return torch.vmap(partial(pool_grid, how=self.settings.pool))(grids)

    def _encode(self, patches: Tensor) -> Tensor:
        """Fused states [images * patches, C]."""
        pack = Pack(patches.flatten(0, 1), [(self.side, self.side)] * len(patches), list(range(len(patches))))
        encoded = self.backbone.encode_packed(pack, self.layers, self.settings.norm).patches
        states = [encoded[layer].float() for layer in self.layers]
        return torch.cat(states, 1) if self.settings.fuse == "concat" else torch.stack(states).mean(0)
