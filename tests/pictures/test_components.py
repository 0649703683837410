"""Principal components: one basis per sheet, colors that mean the same throughout."""

import numpy as np
import pytest

from sail_encoder.io.errors import UserError
from sail_encoder.pictures.components import (
    alignment,
    as_colors,
    common_scores,
    explained,
    foreground_masks,
    otsu,
    sheet_scores,
)


def grids(seed, channels=16, sizes=((4, 6), (5, 3))):
    rng = np.random.default_rng(seed)
    spread = np.linspace(3, 0.1, channels)
    return [(rng.normal(size=(*size, channels)) * spread).astype(np.float32) for size in sizes]


def test_the_same_image_twice_has_the_same_colors():
    first, second = grids(0)
    [[colors]] = as_colors(sheet_scores([[[first, second, first]]]))
    np.testing.assert_array_equal(colors[0], colors[2])
    assert colors[0].std() > 0.1


def test_scores_are_those_of_all_images_together():
    column = grids(1)
    [scores] = common_scores([column])
    patches = np.concatenate([grid.reshape(-1, 16) for grid in column]).astype(np.float64)
    centred = patches - patches.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:3].T / np.sqrt(np.square(centred).sum(1).mean())
    got = np.concatenate([grid.reshape(-1, 3) for grid in scores])
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-4)
    assert explained(scores) == pytest.approx(np.square(expected).sum(1).mean(), abs=1e-4)
    assert ((got**3).sum(0) > 0).all()


def test_layers_share_a_basis_and_count_the_same():
    """What one layer has along an axis, another shows in the same color, whatever the size of its values."""
    rng = np.random.default_rng(2)
    shallow = rng.normal(size=(6, 6, 8)).astype(np.float32) * 0.01
    shallow[:3, :, 2] += 1
    deep = rng.normal(size=(6, 6, 8)).astype(np.float32)
    deep[:, :3, 2] += 100
    first, second = common_scores([[shallow], [deep]])
    leading = np.abs(first[0].reshape(-1, 3)).mean(0).argmax()
    top, left = first[0][..., leading], second[0][..., leading]
    assert np.sign(top[:3].mean() - top[3:].mean()) == np.sign(left[:, :3].mean() - left[:, 3:].mean())
    np.testing.assert_allclose(np.ptp(top), np.ptp(left), rtol=0.2)


def test_models_of_other_channels_are_turned_to_agree():
    column = grids(3)
    rng = np.random.default_rng(4)
    rotation = np.linalg.qr(rng.normal(size=(24, 24)))[0][:16].astype(np.float32)
    other = [7 * grid @ rotation + 3 for grid in column]
    [[first], [second]] = sheet_scores([[column], [other]])
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_alignment_is_a_rotation_also_between_grids_of_other_sizes():
    reference = grids(5, 3)
    scores = [np.repeat(np.repeat(grid, 2, 0), 2, 1)[..., [2, 0, 1]] * [1, -1, 1] for grid in reference]
    turn = alignment(reference, scores, None, None)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
    expected = np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(turn, expected, atol=0.1)


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 2, 8), (3, 3, 2)])
def test_fewer_patches_or_channels_than_colors(shape):
    grid = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    [[[colors]]] = as_colors(sheet_scores([[[grid]]]))
    assert colors.shape == (*shape[:2], 3)
    assert np.isfinite(colors).all()


def test_outliers_do_not_wash_out_the_rest():
    [grid] = grids(7, sizes=((20, 20),))
    grid[0, 0] += 1000
    [[[colors]]] = as_colors([[[grid[..., :3]]]])
    assert colors.reshape(-1, 3).std(0).min() > 0.15


def test_foreground_is_what_stands_away_from_the_border():
    rng = np.random.default_rng(8)
    first = rng.normal(size=(10, 12)).astype(np.float32) * 0.1
    first[3:7, 4:9] += 5
    expected = np.zeros((10, 12), bool)
    expected[3:7, 4:9] = True
    for sign in (1, -1):
        [mask] = foreground_masks([sign * first])
        np.testing.assert_array_equal(mask, expected)
    [all_of_it] = foreground_masks([first], 0.01)
    assert all_of_it.sum() > mask.sum()
    with pytest.raises(UserError, match="leaves 0 patches of 120"):
        foreground_masks([np.zeros((10, 12), np.float32)], 1.0)


def test_background_decides_nothing():
    """Neither the basis nor the stretching."""
    column = grids(9)
    masks = [np.zeros(grid.shape[:2], bool) for grid in column]
    for mask in masks:
        mask[1:3, 1:3] = True
    changed = [np.where(mask[..., None], grid, 50 * grid + 9) for grid, mask in zip(column, masks, strict=True)]
    both = [as_colors(sheet_scores([[one]], [masks]), [masks])[0][0] for one in (column, changed)]
    for before, after, mask in zip(*both, masks, strict=True):
        np.testing.assert_allclose(before[mask], after[mask], atol=1e-4)


def test_otsu_parts_two_heaps():
    rng = np.random.default_rng(10)
    heaps = np.concatenate([rng.normal(0.2, 0.03, 500), rng.normal(0.7, 0.03, 100)])
    assert 0.3 < otsu(heaps) < 0.6
