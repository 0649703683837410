"""A frozen backbone with a dense head: images in, class logits out."""

from dataclasses import replace
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor

from heads.contract import require_same_features
from heads.dense.contract import DenseHead
from heads.dense.registry import TrainedHead
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Batch
from sail_encoder.backbones.pooling import patch_states
from sail_encoder.backbones.registry import load_for
from sail_encoder.backbones.spec import FeatureSpec


class Segmenter:
    """A backbone, which is never trained and stops at the deepest layer that the head reads, and the head.

    Args:
        backbone: The backbone.
        head: A head built for these layers, on the backbone's device.
        source: Which layers the head reads, and whether after the final norm.
    """

    def __init__(self, backbone: VisionBackbone, head: DenseHead, source: FeatureSpec) -> None:
        self.backbone = backbone
        self.head = head.to(backbone.device)
        self.source = source

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return int(self.head.settings["num_classes"])

    @torch.no_grad()
    def maps(self, batch: Batch) -> list[Tensor]:
        """Feature maps of images of one grid: float32 [n, C, nh, nw] for each layer, without gradients."""
        n, r = len(batch.geometries), batch.geometries[0].grid[0]
        return [rearrange(states, "(n r k) c -> n c r k", n=n, r=r).float() for states in self._states(batch)]

    @torch.no_grad()
    def logits(self, batch: Batch) -> list[Tensor]:
        """Class logits [classes, h, w] of images of any size, in the order of the list that the batch came from."""
        grids = [batch.split(states) for states in self._states(batch)]
        sizes = batch.unsort([geometry.grid for geometry in batch.geometries])
        results: dict[int, Tensor] = {}
        for _, group in groupby(sorted(range(len(sizes)), key=sizes.__getitem__), key=sizes.__getitem__):
            alike = list(group)
            maps = [torch.stack([layer[index] for index in alike]).permute(0, 3, 1, 2).float() for layer in grids]
            results.update(zip(alike, self.head(maps), strict=True))
        return [results[index] for index in range(len(sizes))]

    def _states(self, batch: Batch) -> list[Tensor]:
        """What the head reads of each patch: for each layer [total patches, C]."""
        source = self.source
        encoded = self.backbone.forward(batch, source.layers, source.norm)
        return patch_states(encoded, source.layers, batch.lengths, source.class_token)


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
    backbone = load_for(replace(source, precision=dtype), device, model)
    found = replace(source, model=backbone.name, weights=backbone.fingerprint(source.depth - 1))
    require_same_features(source, found)
    return Segmenter(backbone, trained.head, source)
