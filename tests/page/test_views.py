"""Pictures of the page, by what is in them."""

import re

import numpy as np
import pytest
from helpers import noise
from page_helpers import png
from PIL import Image
from sklearn.datasets import load_sample_images

from sail_encoder.io.errors import UserError
from sail_encoder.page.encodings import Encoder
from sail_encoder.page.photos import Photo
from sail_encoder.page.views import (
    check_patch,
    view_components,
    view_matches,
    view_segmentation,
    view_similarity,
)
from sail_encoder.pictures.colors import MARKS, ramp
from sail_encoder.pictures.similarity import cosine_map, mutual_matches

LAYER = 5


@pytest.fixture(scope="module")
def encoder():
    return Encoder(["sail-tiny"], 2**30)


@pytest.fixture(scope="module")
def photo():
    return Photo("noise.png", png(noise(140, 196)))


@pytest.fixture(scope="module")
def encoding(encoder, photo):
    return encoder.encode(photo, "sail-tiny")


def box_of(pixels, color):
    """(left, top, right, bottom) around all pixels of a color."""
    rows, columns = np.nonzero((pixels == color).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_clicked_patch_has_similarity_1_and_its_box_covers_the_clicked_pixel(photo, encoding):
    x, y = 100, 50
    patch = encoding.geometry.patch_at(x, y)
    assert cosine_map(encoding.grids[LAYER][patch], encoding.grids[LAYER])[patch] == pytest.approx(1, abs=1e-6)
    left, top, right, bottom = encoding.geometry.patch_box(*patch)
    assert left <= x < right
    assert top <= y < bottom
    pixels, _ = view_similarity(photo, encoding, LAYER, patch)
    # The outline is drawn around that box, at the picture's size, from the corner of the panel on.
    drawn = box_of(pixels, MARKS[0])
    scale = photo.pixels.shape[1] / photo.image_size[1]
    margin = 16
    wanted = [margin + edge * scale for edge in (left, top, right, bottom)]
    np.testing.assert_allclose(drawn, wanted, atol=6)


def test_the_scale_leaves_the_patch_itself_out(photo, encoding):
    scores = cosine_map(encoding.grids[LAYER][3, 4], encoding.grids[LAYER])
    scores[3, 4] = -1
    _, words = view_similarity(photo, encoding, LAYER, (3, 4))
    low, high = map(float, re.findall(r"from (-?[0-9.]+) to (-?[0-9.]+)\.", words)[0])
    scores[3, 4] = scores.max()
    assert high == pytest.approx(scores.max(), abs=0.006)
    assert low == pytest.approx(scores.min(), abs=0.006)
    assert high < 1


def test_the_scale_is_drawn(photo, encoding):
    pixels, _ = view_similarity(photo, encoding, LAYER, (3, 4))
    for color in ramp()[[0, 128, 255]]:
        assert (pixels == color).all(-1).any()


def test_components_cover_their_patches_and_keep_one_basis(photo, encoding):
    pixels, _ = view_components(photo, encoding, LAYER)
    assert pixels.shape == photo.pixels.shape
    rows, columns = encoding.geometry.grid
    blocks = pixels.reshape(rows, pixels.shape[0] // rows, columns, pixels.shape[1] // columns, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert encoding.components is encoding.components
    for by_layer in encoding.components:
        assert list(by_layer) == list(encoding.grids)


def test_an_image_matches_itself_without_a_shift(encoder):
    photo = Photo("a.png", png(noise(98, 98)))
    encoding = encoder.encode(photo, "sail-tiny")
    _, words = view_matches([photo, photo], [encoding, encoding], LAYER)
    assert words.startswith("The 30 strongest of 49 pairs")
    assert "similarity 1.00 to 1.00" in words


def test_matches_with_a_shifted_copy_find_the_shift(encoder):
    flower = Image.fromarray(load_sample_images().images[1])
    shift = 8 * 14
    crops = [flower.crop((left, 0, left + 14 * 14, 14 * 14)) for left in (200, 200 + shift)]
    encodings = [encoder.encode(Photo("crop", png(np.asarray(crop))), "sail-tiny") for crop in crops]
    pairs, _ = mutual_matches(*(encoding.grids[0] for encoding in encodings))
    shifts = pairs[:, 1] - pairs[:, 3]
    assert np.median(shifts) == 8
    assert np.median(pairs[:, 0] - pairs[:, 2]) == 0


def test_the_legend_has_the_colors_of_the_overlay(photo):
    overlay = photo.pixels.copy()
    overlay[:100, :100] = (0, 128, 0)
    pixels, words = view_segmentation(photo, (overlay, [("tree", (0, 128, 0))]))
    assert (pixels == (0, 128, 0)).all(-1).sum() > 100 * 100
    assert words == "Classes that the head finds in noise.png: tree."
    _, words = view_segmentation(photo, (overlay, []))
    assert words.endswith("background alone.")


@pytest.mark.parametrize("patch", [(-1, 0), (10, 0), (0, 14)])
def test_a_patch_that_is_not_there_is_refused(encoding, patch):
    with pytest.raises(UserError, match="rows go from 0 to 9, columns from 0 to 13"):
        check_patch(encoding, patch)
