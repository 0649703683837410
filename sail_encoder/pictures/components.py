"""Principal components of patches, in one basis for all images and layers of a sheet.

A column of a sheet is one layer of one model, seen on all images: a list of grids [nh, nw, C]. Columns of one model
share a basis, since the blocks of a transformer write into one residual stream; models have different channels, so
each has a basis of its own, which is then turned towards that of the first.
"""

from collections.abc import Sequence

import numpy as np

from sail_encoder.images.decoding import Array
from sail_encoder.io.errors import UserError
from sail_encoder.pictures.overlays import enlarge

COLORS = 3
"""Components that a picture can show: red, green and blue."""

_SAMPLE = 4096
"""Patches per column that a basis is fitted on at most."""

_EXACT = 1024
"""Channels up to which all eigenvectors are worth their time; beyond that the leading ones are iterated for."""

_OUTLIERS = (2, 98)
"""Percentiles between which nearly all of a color's range lies: SAIL has attention sinks, patches far off the rest."""

_ROOM = 0.1
"""Share of a color's range beyond each of them, so that where patches fall into two heaps not all colors are pure."""

Grids = Sequence[Array]
"""A grid [nh, nw, channels] per image."""


def sheet_scores(models: Sequence[Sequence[Grids]], masks: Sequence[Grids] | None = None) -> list[list[list[Array]]]:
    """Scores of all patches of a sheet on three components that mean the same throughout.

    Args:
        models: For each model its columns.
        masks: For each model which patches of each image count, bool [nh, nw]; all by default.

    Returns:
        For each model and column the scores per image, float32 [nh, nw, 3], in units of the column's spread.
    """
    scores: list[list[list[Array]]] = []
    for index, columns in enumerate(models):
        mine = None if masks is None else masks[index]
        own = common_scores(columns, mine)
        if scores:
            turn = alignment(scores[0][-1], own[-1], None if masks is None else masks[0], mine)
            own = [[grid @ turn for grid in column] for column in own]
        scores.append(own)
    return scores


def common_scores(columns: Sequence[Grids], masks: Grids | None = None) -> list[list[Array]]:
    """Scores of one model's columns on the three leading components of all of them together.

    The patches of each column are centred and divided by their spread first, so that a deep layer, whose values are
    many times those of a shallow one, does not choose the basis alone. The sign of a component is arbitrary; it is
    chosen so that larger deviations are positive.

    Args:
        columns: Grids of the same channels.
        masks: Which patches of each image count.

    Returns:
        For each column the scores per image, float32 [nh, nw, 3]; components that do not exist are 0.
    """
    standard = [_standardise(column, masks) for column in columns]
    directions = _leading_directions(np.concatenate([_sample(_counted(column, masks)) for column in standard]))
    scores = [[grid @ directions for grid in column] for column in standard]
    skew = sum((_counted(column, masks) ** 3).sum(0) for column in scores)
    return [[grid * np.where(skew < 0, -1, 1).astype(np.float32) for grid in column] for column in scores]


def alignment(reference: Grids, scores: Grids, reference_masks: Grids | None, masks: Grids | None) -> Array:
    """The rotation, reflections included, that brings the scores of one model closest to those of another.

    The orthogonal Procrustes problem (Schönemann 1966) over the patches of the same images; grids of another size are
    interpolated. Distances between patches stay as they are, only the colors that stand for them turn.

    Args:
        reference: Scores [nh, nw, 3] of the first model per image.
        scores: Those of the other model.
        reference_masks: Which patches of the first model count; all by default.
        masks: Which patches of the other model count.

    Returns:
        An orthogonal matrix float32 [3, 3], to multiply the other's scores with.
    """
    from scipy.linalg import orthogonal_procrustes

    sizes = [grid.shape[:2] for grid in reference]
    resized = [enlarge(grid, size, smooth=True) for grid, size in zip(scores, sizes, strict=True)]
    counts = None
    if masks is not None and reference_masks is not None:
        pairs = zip(masks, reference_masks, strict=True)
        counts = [mask & enlarge(other, mask.shape, smooth=False).astype(bool) for other, mask in pairs]
        counts = counts if any(count.any() for count in counts) else None
    turn, _ = orthogonal_procrustes(_counted(resized, counts), _counted(reference, counts))
    return np.asarray(turn, np.float32)


def explained(column: Grids, masks: Grids | None = None) -> float:
    """Share of a column's variance that its scores hold, from 0 to 1."""
    return float(np.square(_counted(column, masks)).sum(-1).mean())


def as_colors(scores: Sequence[Sequence[Grids]], masks: Sequence[Grids] | None = None) -> list[list[list[Array]]]:
    """Scores as shares of red, green and blue, float32 in [0, 1].

    Each component of a column is stretched by its 2nd and 98th percentile over all images, so that the same patch has
    the same color wherever it stands in the column.

    Args:
        scores: What `sheet_scores` returns.
        masks: Which patches decide how far to stretch.
    """
    return [
        [
            [
                (_ROOM + (1 - 2 * _ROOM) * shares).clip(0, 1)
                for shares in _stretch(column, masks[index] if masks else None)
            ]
            for column in columns
        ]
        for index, columns in enumerate(scores)
    ]


def foreground_masks(first: Grids, threshold: float | None = None) -> list[Array]:
    """Patches that the first component tells from the background.

    The side of the component that meets the borders of the images less is taken for the foreground, since its sign says
    nothing.

    Args:
        first: Scores [nh, nw] on the first component per image.
        threshold: From which value on, with 0 and 1 for the 2nd and 98th percentile; by default where the two sides
            differ most (Otsu 1979).

    Returns:
        bool [nh, nw] per image.

    Raises:
        UserError: If fewer patches are left than a picture has colors.
    """
    border = np.concatenate([np.concatenate([grid[[0, -1]].ravel(), grid[:, [0, -1]].ravel()]) for grid in first])
    everywhere = np.concatenate([grid.ravel() for grid in first])
    side = -1 if border.mean() > everywhere.mean() else 1
    shares = [grid[..., 0] for grid in _stretch([side * grid[..., None] for grid in first], None)]
    cut = otsu(np.concatenate([grid.ravel() for grid in shares])) if threshold is None else threshold
    masks = [grid >= cut for grid in shares]
    left = sum(int(mask.sum()) for mask in masks)
    if left < COLORS:
        raise UserError(f"--foreground leaves {left} patches of {len(everywhere):,}; try a lower threshold")
    return masks


def otsu(values: Array, bins: int = 256) -> float:
    """The threshold that parts values into two groups with the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins, (0, 1))
    centers = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    above = total - below
    sums = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num(below * above * (sums / below - (sums[-1] - sums) / above) ** 2)
    # Wherever in an empty gap the threshold is, the groups are the same.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1 + best[len(best) // 2]])


def _standardise(column: Grids, masks: Grids | None) -> list[Array]:
    counted = _counted(column, masks).astype(np.float32)
    mean = counted.mean(0)
    spread = float(np.sqrt(np.square(counted - mean).sum(-1).mean()))
    return [(grid.astype(np.float32) - mean) / (spread or 1) for grid in column]


def _counted(grids: Grids, masks: Grids | None) -> Array:
    """The patches that count, [patches, channels]."""
    if masks is None:
        return np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids])
    return np.concatenate([grid[mask] for grid, mask in zip(grids, masks, strict=True)])


def _sample(patches: Array) -> Array:
    if len(patches) <= _SAMPLE:
        return patches
    return patches[np.random.default_rng(0).choice(len(patches), _SAMPLE, replace=False)]


def _leading_directions(patches: Array) -> Array:
    """Directions of the largest variance of centred patches, float32 [C, 3], 0 where there are fewer."""
    from scipy.linalg import eigh
    from sklearn.utils.extmath import randomized_svd

    channels = patches.shape[1]
    count = min(COLORS, *patches.shape)
    if channels <= _EXACT:
        wide = patches.astype(np.float64)
        _, vectors = eigh(wide.T @ wide, subset_by_index=(channels - count, channels - 1))
        directions = vectors[:, ::-1]
    else:
        directions = randomized_svd(patches, count, n_oversamples=20, n_iter=15, random_state=0)[2].T
    return np.pad(directions, ((0, 0), (0, COLORS - count))).astype(np.float32)


def _stretch(column: Grids, masks: Grids | None) -> list[Array]:
    """Scores as shares of the way from the lower to the upper percentile."""
    low, high = np.percentile(_counted(column, masks), _OUTLIERS, axis=0)
    return [((grid - low) / np.maximum(high - low, 1e-12)).astype(np.float32) for grid in column]
