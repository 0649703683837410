"""All layers of a backbone in one pass over the images, pooled as they come."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from evals.errors import DatasetError
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.packing import Pack, pack_consecutive
from sail_encoder.images.pixels import Array, PatchedImage
from sail_encoder.images.resizing import Resize
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import ImageError
from sail_encoder.io.threads import Behind, map_ahead, prefetch

PACKS_AHEAD = 2

Read = tuple[ImageFile, PatchedImage | None]


@dataclass(frozen=True, eq=False)
class LayerFeatures:
    """Pooled features of every layer.

    Attributes:
        vectors: float32 [layers, images, C].
        mean_norms: Mean over all tokens of the length of their state, before the final norm [layers].
        max_norms: The largest of these lengths [layers].
        keys: The images, in order; those that could not be read are left out.
    """

    vectors: Array
    mean_norms: Array
    max_norms: Array
    keys: list[str]


def pool_layers(
    backbone: VisionBackbone,
    images: Sequence[ImageFile],
    resize: Resize,
    norm: bool = True,
    pool: Literal["mean", "max"] = "mean",
) -> LayerFeatures:
    """Encodes images once, and pools the patches of every layer.

    Args:
        backbone: The model.
        images: The images.
        resize: How they are brought to size.
        norm: Whether the final norm is applied to every layer before pooling.
        pool: How patches become one vector.

    Raises:
        DatasetError: If no image can be read.
    """
    keys: list[str] = []
    parts: list[Tensor] = []
    lengths = TokenLengths(backbone)
    with ThreadPoolExecutor(1, "copy") as copying, tqdm(total=len(images), unit="img", disable=None) as bar:
        behind = Behind(copying, PACKS_AHEAD)
        for group in _read_groups(backbone, images, resize):
            bar.update(len(group))
            good = [(image, patched) for image, patched in group if patched is not None]
            if not good:
                continue
            pack = Pack.of([patched for _, patched in good], backbone.device.type == "cuda")
            pooled, norms = _pool_pack(backbone, pack, norm, pool)
            lengths.add(norms)
            behind.submit(lambda pooled, order: parts.append(pooled.cpu()[:, _inverse(order)]), pooled, pack.order)
            keys += [image.key for image, _ in good]
        behind.drain()
    if not keys:
        raise DatasetError(f"none of {len(images)} images can be read")
    return LayerFeatures(torch.cat(parts, 1).numpy(), lengths.mean, lengths.largest, keys)


class TokenLengths:
    """Sums up how long the states of tokens are, by layer, on the device."""

    def __init__(self, backbone: VisionBackbone) -> None:
        self._sum = torch.zeros(backbone.num_layers, dtype=torch.float64, device=backbone.device)
        self._largest = torch.zeros(backbone.num_layers, device=backbone.device)
        self._tokens = 0

    def add(self, lengths: Tensor) -> None:
        """Adds the lengths of some tokens [layers, tokens]."""
        self._sum += lengths.sum(1, dtype=torch.float64)
        self._largest = torch.maximum(self._largest, lengths.amax(1))
        self._tokens += lengths.shape[1]

    @property
    def mean(self) -> Array:
        """Mean over all tokens [layers]."""
        return (self._sum / self._tokens).cpu().numpy()

    @property
    def largest(self) -> Array:
        """The largest of all [layers]."""
        return self._largest.cpu().numpy()


@torch.no_grad()
def _pool_pack(backbone: VisionBackbone, pack: Pack, norm: bool, pool: str) -> tuple[Tensor, Tensor]:
    """Pooled states [layers, images, C] in packed order, and the lengths of all tokens [layers, total patches]."""
    encoded = backbone.encode_packed(pack, range(backbone.num_layers), norm=False)
    counts = torch.tensor([rows * columns for rows, columns in pack.grids], device=backbone.device)
    pooled, norms = [], []
    for layer in range(backbone.num_layers):
        states = encoded.patches.pop(layer)
        norms.append(states.float().norm(dim=1))
        states = backbone.final_norm(states) if norm else states
        pooled.append(torch.segment_reduce(states.float(), pool, lengths=counts))
    return torch.stack(pooled), torch.stack(norms)


def _inverse(order: Sequence[int]) -> list[int]:
    """Where each image of the list stands in packed order."""
    return sorted(range(len(order)), key=order.__getitem__)


def _read_groups(backbone: VisionBackbone, images: Sequence[ImageFile], resize: Resize) -> Iterator[list[Read]]:
    """Images in groups that fit one forward pass, read ahead by threads."""

    def read(image: ImageFile) -> Read:
        try:
            return image, backbone.prepare(image.open(), resize)
        except (ImageError, OSError):
            return image, None

    readers = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(readers, "read") as pool:
        items = map_ahead(read, images, pool, 4 * readers)
        groups = pack_consecutive(items, _tokens, backbone.default_token_budget())
        with closing(prefetch(groups, PACKS_AHEAD)) as ahead:
            yield from ahead


def _tokens(item: Read) -> int:
    return 0 if item[1] is None else len(item[1].patches)
