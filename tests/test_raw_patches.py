import numpy as np
import pytest
import torch
from helpers import noise

from sail_encoder import load_backbone
from sail_encoder.backbones.registry import describe
from sail_encoder.images.patches import patchify
from sail_encoder.io.errors import UserError


def test_features_are_the_normalised_pixels():
    backbone = load_backbone("raw/14")
    image = noise(28, 42)
    grid = backbone.encode([image])[0].grid
    assert grid.shape == (2, 3, 588)
    pixels = grid.reshape(6, 3, 196) * torch.tensor(backbone.spec.image_std)[:, None]
    pixels = (pixels + torch.tensor(backbone.spec.image_mean)[:, None]) * 255
    np.testing.assert_allclose(pixels.reshape(6, 588).numpy(), patchify(image, 14), atol=1e-3)


def test_patch_sizes_have_names_of_their_own():
    assert load_backbone("raw/14").fingerprint(0) != load_backbone("raw/16").fingerprint(0)
    assert describe("raw/16").embed_dim == load_backbone("raw/16").embed_dim == 768


@pytest.mark.parametrize("name", ["raw/", "raw/0", "raw/big"])
def test_what_is_no_patch_size(name):
    with pytest.raises(UserError, match="such as raw/14"):
        load_backbone(name)


def test_it_has_one_layer():
    with pytest.raises(UserError, match="has one layer"):
        load_backbone("raw/14", layers=2)
