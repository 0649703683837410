"""Cosine similarity between patches: maps of one patch, and patches that find each other."""

from collections.abc import Sequence

import numpy as np

from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Size


def cosine_map(patch: Array, grid: Array) -> Array:
    """Cosine similarity of one patch [C] to each patch of a grid [nh, nw, C], as float32 [nh, nw] in [-1, 1]."""
    return (_unit(grid) @ _unit(patch)).clip(-1, 1)


def best_patch(scores: Array) -> Size:
    """(row, column) of the highest score of a map [nh, nw], the first of equal ones."""
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return int(row), int(column)


def score_range(maps: Sequence[Array], left_out: Sequence[Size | None]) -> tuple[float, float]:
    """Lowest and highest score of several maps.

    Args:
        maps: Maps [nh, nw].
        left_out: For each map a patch (row, column) that does not count: a query is as similar to itself as can be,
            and a scale that reached up to it would hold nothing near its upper end.
    """
    counted = []
    for scores, patch in zip(maps, left_out, strict=True):
        others = np.ones(scores.shape, bool)
        # An only patch is all there is to show.
        if patch is not None and scores.size > 1:
            others[patch] = False
        counted.append(scores[others])
    values = np.concatenate(counted)
    return float(values.min()), float(values.max())


def mutual_matches(first: Array, second: Array) -> tuple[Array, Array]:
    """Pairs of patches that are each the other's nearest by cosine similarity.

    Args:
        first: Grid [nh, nw, C] of one image.
        second: Grid of another, of the same channels.

    Returns:
        int64 [pairs, 4] with row and column in the first and row and column in the second, and their similarity
        float32 [pairs]; the strongest come first.
    """
    similarity = _unit(first).reshape(-1, first.shape[-1]) @ _unit(second).reshape(-1, second.shape[-1]).T
    forth, back = similarity.argmax(1), similarity.argmax(0)
    here = np.flatnonzero(back[forth] == np.arange(len(forth)))
    there = forth[here]
    strength = similarity[here, there].clip(-1, 1)
    order = np.argsort(-strength, kind="stable")
    places = [*np.unravel_index(here, first.shape[:2]), *np.unravel_index(there, second.shape[:2])]
    return np.stack(places, 1)[order], strength[order]


def _unit(features: Array) -> Array:
    """Features of length 1, float32; zero stays zero."""
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
