"""Backbones that read rectangular batches: images of one size stacked, one forward pass for each size."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sail_encoder.backbones.base import VisionBackbone, read_resized
from sail_encoder.backbones.batch import Batch, Encoded, Prepared
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import ImageLike
from sail_encoder.images.resizing import Resize
from sail_encoder.io.devices import send
from sail_encoder.io.errors import UserError


class StackedBackbone(VisionBackbone):
    """A backbone whose view of an image is the whole of it, uint8 [3, height, width].

    Args:
        spec: What it is.
        model: The model, in evaluation mode.
        any_size: Whether it takes images of any size; otherwise only those of `spec.resize`.
    """

    def __init__(self, spec: BackboneSpec, model: Any, any_size: bool) -> None:
        self.spec = spec
        self.model = model
        self.any_size = any_size

    @abstractmethod
    def forward_stack(self, pixel_values: Tensor, layers: Sequence[int]) -> Encoded:
        """Encodes images of one size that the model takes, without the final norm.

        Args:
            pixel_values: [n, 3, rows * patch_size, columns * patch_size], normalised, in the model's precision.
            layers: Block indices in rising order; nothing beyond the last is computed.
        """

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def prepare(self, image: ImageLike, size: Resize, exif_rotate: bool = False) -> Prepared:
        resized, geometry = read_resized(image, self.spec, size, exif_rotate)
        return Prepared(np.asarray(resized).transpose(2, 0, 1), geometry, geometry.patches)

    def collate(self, items: Sequence[Prepared]) -> Batch:
        # Images of one size stand side by side, so that each size is one rectangular batch.
        order = sorted(range(len(items)), key=lambda index: items[index].geometry.grid)
        runs = groupby(order, key=lambda index: items[index].geometry.grid)
        views = (torch.from_numpy(np.stack([items[index].views for index in run])) for _, run in runs)
        return Batch(tuple(views), [items[index].geometry for index in order], order)

    @torch.no_grad()
    def forward(self, batch: Batch, layers: Collection[int], norm: bool = True) -> Encoded:
        runs = [self.forward_pixels(self.normalize(views), layers) for views in batch.views]
        encoded = Encoded(
            {layer: torch.cat([run.patches[layer] for run in runs]) for layer in layers},
            {layer: torch.cat([run.class_tokens[layer] for run in runs]) for layer in runs[0].class_tokens},
        )
        return self.normed(encoded) if norm else encoded

    def normalize(self, views: Tensor) -> Tensor:
        """Brings uint8 images [n, 3, height, width] to what the model takes, on its device, in float32."""
        pixels = send(views, self.device).float() / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.spec.image_mean, self.spec.image_std))
        return (pixels - mean) / std

    def forward_pixels(self, pixel_values: Tensor, layers: Collection[int]) -> Encoded:
        self._check_size(tuple(pixel_values.shape))
        return self.forward_stack(pixel_values.to(self.dtype), sorted(layers))

    def _check_size(self, shape: tuple[int, ...]) -> None:
        """Makes sure that patches tile a batch of this shape, and that the model takes its size."""
        p, fixed = self.patch_size, self.spec.resize.fixed
        if len(shape) != 4 or shape[1] != 3 or shape[2] % p or shape[3] % p:
            raise UserError(f"a batch of shape {shape} cannot be cut into patches; pass [n, 3, {p}*a, {p}*b]")
        if not self.any_size and fixed is not None and shape[2:] != fixed:
            raise UserError(f"{self.name} takes only images of {self.spec.resize}; leave --resize at auto")

    def bytes_per_token(self) -> int:
        return 24 * self.embed_dim * self.dtype.itemsize
