"""Crops of images and of their labels show the same place."""

import numpy as np
import pytest
from PIL import Image

from evals.segmentation.augment import PADDING, Augmentation, choose_crop, distort_colors, pad
from heads.dense import IGNORE
from sail_encoder.images.resizing import Resize

HEIGHT, WIDTH = 120, 200


def position_image():
    """Red is the row, green the column; the labels are a coarse grid of 6 x 10 cells."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack((2 * rows, columns, np.zeros_like(rows)), -1).astype(np.uint8)
    return Image.fromarray(image), (rows // 20 * 10 + columns // 20).astype(np.uint8)


@pytest.mark.parametrize("resize", [Resize(), Resize(short=90), Resize((150, 100))])
@pytest.mark.parametrize("seed", range(6))
def test_colors_say_where_labels_come_from(resize, seed):
    image, labels = position_image()
    augment = Augmentation((84, 112), resize, (0.5, 2.0), flip=True, distort=False)
    pixels, target = augment(image, labels, np.random.default_rng(seed))
    assert pixels.shape == (84, 112, 3)
    assert target.shape == (84, 112)
    counted = target != IGNORE
    assert (pixels[~counted] == PADDING).all()
    row, column = target[counted] // 10, target[counted] % 10
    red, green = pixels[counted][:, 0] / 2 / 20, pixels[counted][:, 1] / 20
    assert (np.abs(red - row - 0.5) < 0.65).mean() > 0.98
    assert (np.abs(green - column - 0.5) < 0.65).mean() > 0.98


def test_half_of_the_crops_are_mirrored_and_sizes_span_the_jitter():
    image, labels = position_image()
    augment = Augmentation((56, 56), Resize(), (0.5, 2.0), flip=True, distort=False)
    mirrored, widths = 0, []
    for seed in range(60):
        pixels, _ = augment(image, labels, np.random.default_rng(seed))
        slope = float(np.diff(pixels[28, :, 1].astype(int)).mean())
        mirrored += slope < 0
        widths.append(abs(slope))
    assert 18 < mirrored < 42
    assert min(widths) < 0.65
    assert max(widths) > 1.6


def test_the_same_seed_gives_the_same_crop():
    image, labels = position_image()
    augment = Augmentation((56, 70))
    first, again, other = (augment(image, labels, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_crops_in_which_one_class_has_almost_everything_are_drawn_again():
    labels = np.zeros((100, 100), np.uint8)
    labels[:, 60:] = 1
    found = 0
    for seed in range(50):
        _, target = choose_crop(labels, (100, 100), (30, 30), np.random.default_rng(seed))
        found += 0.25 <= target.mean() <= 0.75
    assert found > 40
    uniform = np.full((100, 100), 3, np.uint8)
    assert choose_crop(uniform, (100, 100), (30, 30), np.random.default_rng(0))[1].tolist() == [[3] * 30] * 30


def test_crops_begin_at_whole_steps():
    labels = np.arange(100 * 98).reshape(100, 98).astype(np.uint8)
    for seed in range(20):
        (top, left, bottom, right), target = choose_crop(labels, (98, 98), (42, 56), np.random.default_rng(seed), 14)
        assert (top % 14, left % 14, bottom - top, right - left) == (0, 0, 42, 56)
        assert target.shape == (42, 56)


def test_padding_is_at_the_bottom_and_at_the_right():
    assert pad(np.ones((1, 2), np.uint8), (2, 3), IGNORE).tolist() == [[1, 1, IGNORE], [IGNORE] * 3]


def test_distortion_changes_colors_within_bounds():
    gray = np.full((4, 4, 3), 128, np.uint8)
    results = [distort_colors(gray, np.random.default_rng(seed))[0, 0] for seed in range(200)]
    levels = [int(color[0]) for color in results]
    assert min(levels) < 70
    assert max(levels) > 190
    # Gray has no color that could turn, and brightness and contrast treat the channels alike.
    assert max(int(color.max()) - int(color.min()) for color in results) <= 2
    red = np.full((4, 4, 3), (200, 60, 60), np.uint8)
    turned = {tuple(distort_colors(red, np.random.default_rng(seed))[0, 0]) for seed in range(200)}
    assert any(g > b + 20 for _, g, b in turned)
    assert any(b > g + 20 for _, g, b in turned)
    assert (200, 60, 60) in turned
    assert all(r >= max(g, b) for r, g, b in turned)
