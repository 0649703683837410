"""All layers of a backbone in one pass over the images, pooled as they come."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evals.errors import DatasetError
from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.batch import Batch, Prepared
from sail_encoder.backbones.pooling import pool
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.extraction.loader import PackedLoader
from sail_encoder.images.decoding import Array
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.devices import send
from sail_encoder.io.threads import BackgroundWriter
from sail_encoder.store.reading import FeatureFolder

BATCHES_TO_COPY = 2


@dataclass(frozen=True, eq=False)
class LayerFeatures:
    """Pooled features of every layer.

    Attributes:
        vectors: float32 [layers, images, C].
        mean_norms: Mean over all tokens of the length of their state, before the final norm [layers]; empty where only
            stored features are known.
        max_norms: The largest of these lengths [layers].
        keys: The images, in order; those that could not be read are left out.
        numbers: Which layers of the model these are.
    """

    vectors: Array
    mean_norms: Array
    max_norms: Array
    keys: list[str]
    numbers: Sequence[int]

    @classmethod
    def from_folder(cls, folder: FeatureFolder, pool: str) -> "LayerFeatures":
        """Layers that `sail extract` has stored; grids are pooled, vectors are taken as they are."""
        vectors = np.stack([folder.matrix(layer, pool).astype(np.float32) for layer in folder.layers])
        keys = [entry.path for entry in folder.entries]
        return cls(vectors, np.empty(0), np.empty(0), keys, folder.layers)


def pool_layers(backbone: VisionBackbone, images: Sequence[ImageFile], features: FeatureSpec) -> LayerFeatures:
    """Encodes images once, and pools the patches of every layer.

    Args:
        backbone: The model.
        images: The images.
        features: How they are turned and brought to size, whether the final norm is applied to every layer, and how
            patches become one vector.

    Raises:
        DatasetError: If no image can be read.
    """
    keys: list[str] = []
    parts: list[Tensor] = []
    lengths = TokenLengths(backbone)

    def prepare(image: ImageFile) -> Prepared:
        return backbone.prepare(image.open(), features.size, features.exif_rotate)

    loader = PackedLoader(backbone, prepare)
    pool_batch = partial(_pool_batch, backbone, features)
    with ThreadPoolExecutor(1, "copy") as copying, tqdm(total=len(images), unit="img", disable=None) as bar:
        to_copy = BackgroundWriter(copying, BATCHES_TO_COPY)
        for group, batch, result in loader.run([images], pool_batch):
            bar.update(len(group))
            if batch is not None and result is not None:
                pooled, norms = result
                lengths.add(norms)
                to_copy.submit(
                    lambda pooled, batch: parts.append(pooled.cpu()[:, _inverse(batch.order)]), pooled, batch
                )
                keys += [one.item.key for one in group if one.image is not None]
        to_copy.drain()
    if not keys:
        raise DatasetError(f"none of {len(images)} images can be read")
    return LayerFeatures(torch.cat(parts, 1).numpy(), lengths.mean, lengths.largest, keys, range(backbone.num_layers))


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
def _pool_batch(backbone: VisionBackbone, features: FeatureSpec, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pooled states [layers, images, C] in the batch's order, and the lengths of all tokens [layers, total patches]."""
    encoded = backbone.forward(batch, range(backbone.num_layers), norm=False)
    counts = send(torch.tensor(batch.lengths), backbone.device)
    pooled, norms = [], []
    for layer in range(backbone.num_layers):
        states = encoded.patches.pop(layer)
        norms.append(states.float().norm(dim=1))
        token = encoded.class_tokens.get(layer)
        if features.norm:
            states, token = backbone.final_norm(states), None if token is None else backbone.final_norm(token)
        pooled.append(pool(states, counts, features.pool, token))
    return torch.stack(pooled), torch.stack(norms)


def _inverse(order: Sequence[int]) -> list[int]:
    """Place of each image of the list in the batch."""
    return sorted(range(len(order)), key=order.__getitem__)
