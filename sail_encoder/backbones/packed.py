"""Backbones that read packed patches: images of any size end to end in one sequence, nothing padded or squashed."""

from abc import abstractmethod
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from sail_encoder.backbones.base import VisionBackbone, read_resized
from sail_encoder.backbones.batch import Batch, Encoded, Prepared
from sail_encoder.images.decoding import ImageLike
from sail_encoder.images.patches import patchify, patchify_batch
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.io.devices import send


class PackedBackbone(VisionBackbone):
    """A backbone whose views of an image are its patches, uint8 [rows * columns, 3 * patch_size**2]."""

    @abstractmethod
    def forward_patches(self, pixel_values: Tensor, grids: Sequence[Size], layers: Collection[int]) -> Encoded:
        """Encodes packed images, without the final norm.

        Args:
            pixel_values: [total patches, 3 * patch_size**2], normalised, on the backbone's device.
            grids: Rows and columns per image.
            layers: Block indices; nothing beyond the deepest is computed.
        """

    def prepare(self, image: ImageLike, size: Resize, exif_rotate: bool = False) -> Prepared:
        resized, geometry = read_resized(image, self.spec, size, exif_rotate)
        patches = patchify(np.asarray(resized), self.spec.patch_size)
        return Prepared(patches, geometry, len(patches))

    def collate(self, items: Sequence[Prepared]) -> Batch:
        # Images of equal length side by side share a call of attention where there is no kernel for mixed lengths.
        order = sorted(range(len(items)), key=lambda index: items[index].cost)
        patches = torch.from_numpy(np.concatenate([items[index].views for index in order]))
        return Batch((patches,), [items[index].geometry for index in order], order)

    @torch.no_grad()
    def forward(self, batch: Batch, layers: Collection[int], norm: bool = True) -> Encoded:
        patches = send(batch.views[0], self.device)
        grids = [geometry.grid for geometry in batch.geometries]
        encoded = self.forward_patches(self.normalize(patches), grids, layers)
        return self.normed(encoded) if norm else encoded

    def forward_pixels(self, pixel_values: Tensor, layers: Collection[int]) -> Encoded:
        patches, grid = patchify_batch(pixel_values, self.patch_size)
        return self.forward_patches(patches, [grid] * len(pixel_values), layers)

    def normalize(self, patches: Tensor) -> Tensor:
        """Brings uint8 patches [n, 3 * p * p] to what the model takes, in float32."""
        area = self.patch_size**2
        mean, std = (
            send(torch.tensor(channels).repeat_interleave(area), patches.device)
            for channels in (self.spec.image_mean, self.spec.image_std)
        )
        return (patches.float() / 255 - mean) / std
