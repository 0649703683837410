"""A frozen backbone with a dense head: images in, class logits out."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor

from heads.contract import FeatureSource
from heads.dense.contract import DenseHead
from heads.dense.registry import TrainedHead
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.packing import Pack
from sail_encoder.backbones.registry import load_backbone
from sail_encoder.images.pixels import PatchedImage


class Segmenter:
    """A backbone, which is never trained and stops at the deepest layer that the head reads, and the head.

    Args:
        backbone: The backbone.
        head: A head built for these layers, on the backbone's device.
        source: Which layers the head reads, and whether after the final norm.
    """

    def __init__(self, backbone: VisionBackbone, head: DenseHead, source: FeatureSource) -> None:
        self.backbone = backbone
        self.head = head.to(backbone.device)
        self.source = source

    @property
    def num_classes(self) -> int:
        """How many classes the head tells apart."""
        return int(self.head.settings["num_classes"])

    def maps(self, images: Sequence[PatchedImage]) -> list[Tensor]:
        """The feature maps of images of one grid: float32 [n, C, nh, nw] for each layer, without gradients."""
        pack = Pack.of(images, self.backbone.device.type == "cuda")
        encoded = self.backbone.encode_packed(pack, self.source.layers, self.source.norm)
        n, r = len(images), images[0].grid[0]
        return [
            rearrange(encoded.patches[layer], "(n r k) c -> n c r k", n=n, r=r).float() for layer in self.source.layers
        ]

    @torch.no_grad()
    def logits(self, images: Sequence[PatchedImage]) -> list[Tensor]:
        """Class logits [classes, h, w] of images of any size; the backbone sees them all in one pass."""
        pack = Pack.of(images, self.backbone.device.type == "cuda")
        encoded = self.backbone.encode_packed(pack, self.source.layers, self.source.norm)
        grids = [pack.split(encoded.patches[layer]) for layer in self.source.layers]
        order = sorted(range(len(images)), key=lambda index: images[index].grid)
        results: dict[int, Tensor] = {}
        for _, group in groupby(order, key=lambda index: images[index].grid):
            alike = list(group)
            maps = [torch.stack([layer[index] for index in alike]).permute(0, 3, 1, 2).float() for layer in grids]
            results.update(zip(alike, self.head(maps), strict=True))
        return [results[index] for index in range(len(images))]


def load_segmenter(
    trained: TrainedHead, model: str | None = None, device: str = "auto", dtype: str = "auto"
) -> Segmenter:
    """Loads the backbone that a head was trained on.

    Args:
        trained: The head.
        model: Where the backbone is now, if it has moved.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.

    Raises:
        HeadError: If the backbone has other weights.
    """
    source = trained.source
    depth = max(source.layers) + 1
    backbone = load_backbone(model or source.backbone, device, dtype, depth)
    source.check(replace(source, backbone=backbone.name, weights=backbone.fingerprint(depth - 1)))
    return Segmenter(backbone, trained.head, source)
