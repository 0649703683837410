"""Encodings: what a model sees in an image, made once and kept in bounded memory."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.registry import announce, describe, load_for, resolve_features
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.images.decoding import Array
from sail_encoder.images.geometry import Geometry
from sail_encoder.io.errors import UserError
from sail_encoder.page.memory import BoundedCache
from sail_encoder.page.photos import Photo
from sail_encoder.pictures.components import as_colors, common_scores, explained

_MAX_TOKENS = 1024
"""Patches per image at most under the native rule, so that an answer comes while somebody waits."""

_LAYERS = 12
"""Layers that are kept of a model at most."""

MOST = 32
"""Encodings that are kept at most, however small they are."""

_FLOAT16 = float(np.finfo(np.float16).max)


class Encoding:
    """Features of one image by one model.

    Args:
        geometry: Where its patches lie.
        grids: For each layer its grid [nh, nw, C], float16, or float32 where values are beyond that.
    """

    def __init__(self, geometry: Geometry, grids: dict[int, Array]) -> None:
        self.geometry, self.grids = geometry, grids

    @property
    def nbytes(self) -> int:
        """Memory that it takes, with its components."""
        return sum(grid.nbytes + grid[..., :3].size * 4 for grid in self.grids.values())

    @cached_property
    def components(self) -> tuple[dict[int, Array], dict[int, float]]:
        """Principal components of the patches, in one basis for all layers.

        Returns:
            For each layer the colors that they are, float32 [nh, nw, 3] in [0, 1], and the share of its variance that
            they show.
        """
        scores = common_scores([[grid] for grid in self.grids.values()])
        [colors] = as_colors([scores])
        shares = [explained(column) for column in scores]
        shown = [column[0] for column in colors]
        return dict(zip(self.grids, shown, strict=True)), dict(zip(self.grids, shares, strict=True))


def spread_layers(spec: BackboneSpec) -> list[int]:
    """Layers of a model at even distances that end with its last, of the last stage where patches differ."""
    last = spec.num_layers - 1
    alike = [layer for layer in range(last + 1) if not spec.stages or spec.stages[layer] == spec.stages[last]]
    stride = -(-len(alike) // _LAYERS)
    return alike[::-stride][::-1]


class Encoder:
    """Models that a page offers, each loaded when it is first used, and encodings by them.

    Args:
        models: Names of models, as in `load_backbone`.
        limit: Bytes of encodings at most; those used longest ago go first.

    Attributes:
        features: What is taken from each model, by name.

    Raises:
        UserError: If there is no such model.
    """

    def __init__(self, models: Sequence[str], limit: int) -> None:
        self.features: dict[str, FeatureSpec] = {}
        self.specs: dict[str, BackboneSpec] = {}
        for model in dict.fromkeys(models):
            spec = describe(model)
            most = min(_MAX_TOKENS, spec.resize.max_tokens)
            self.specs[model], self.features[model] = resolve_features(model, spread_layers(spec), "auto", most)
        self.encodings: BoundedCache[tuple[str, str], Encoding] = BoundedCache(
            limit, lambda one: max(one.nbytes, limit // MOST)
        )
        self._backbones: BoundedCache[str, VisionBackbone] = BoundedCache(len(self.features))

    def layers(self, model: str) -> tuple[int, ...]:
        """Layers whose features are kept.

        Raises:
            UserError: If the page does not offer this model.
        """
        return self._features(model).layers

    def load(self, model: str) -> VisionBackbone:
        """The backbone of a model, which is loaded once."""
        return self._backbones.get_or_make(model, lambda: self._load(self._features(model)))

    def encode(self, photo: Photo, model: str) -> Encoding:
        """Features of an image, which are computed once as long as they are kept.

        Raises:
            UserError: If the page does not offer this model.
        """
        asked = self._features(model)
        return self.encodings.get_or_make((photo.digest, model), lambda: self._encode(photo, asked))

    def _features(self, model: str) -> FeatureSpec:
        if model not in self.features:
            raise UserError(f"this page has no model {model}; it offers {', '.join(self.features)}")
        return self.features[model]

    def _load(self, asked: FeatureSpec) -> VisionBackbone:
        announce(asked.model)
        return load_for(asked)

    def _encode(self, photo: Photo, asked: FeatureSpec) -> Encoding:
        [features] = self.load(asked.model).encode([photo.read()], asked.layers, asked.norm, asked.size)
        grids = {layer: _compact(grid.float().cpu().numpy()) for layer, grid in features.layers.items()}
        return Encoding(features.geometry, grids)


def _compact(grid: Array) -> Array:
    return grid.astype(np.float16) if np.abs(grid).max() <= _FLOAT16 else grid
