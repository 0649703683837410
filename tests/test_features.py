import pytest
import torch

from sail_encoder import Features, UserError
from sail_encoder.images.geometry import Geometry


@pytest.fixture
def features():
    grids = {2: torch.arange(24.0).reshape(2, 3, 4), 5: -torch.arange(24.0).reshape(2, 3, 4)}
    return Features(grids, Geometry(image_size=(60, 120), resized_size=(28, 42), grid=(2, 3)), num_layers=6)


def test_grid_is_the_last_requested_layer(features):
    assert features.grid is features.layers[5]
    assert features.grid_size == (2, 3)


def test_pooling(features):
    torch.testing.assert_close(features.pool("mean"), features.layers[5].reshape(6, 4).mean(0))
    torch.testing.assert_close(features.pool("max", layer=2), torch.tensor([20.0, 21, 22, 23]))
    torch.testing.assert_close(features.pool("max", layer=-4), features.pool("max", layer=2))
    with pytest.raises(UserError, match="layer -3 was not requested; there is 2, 5"):
        features.pool("mean", layer=-3)
    with pytest.raises(UserError, match="has none; use mean, max or gem"):
        features.pool("cls")
    with pytest.raises(UserError, match="use mean, max, gem, cls, cls_mean"):
        features.pool("median")


def test_patches_and_pixels_of_the_original(features):
    assert features.patch_box(0, 0) == (0, 0, 40, 30)
    assert features.patch_box(1, 2) == (80, 30, 120, 60)
    assert features.patch_box(-1, -1) == features.patch_box(1, 2)
    for row in range(2):
        for column in range(3):
            left, top, right, bottom = features.patch_box(row, column)
            assert features.patch_at((left + right) / 2, (top + bottom) / 2) == (row, column)
            assert features.patch_at(left, top) == (row, column)
    assert features.patch_at(119.99, 59.99) == (1, 2)
    with pytest.raises(IndexError, match="2x3 grid"):
        features.patch_box(2, 0)
    with pytest.raises(IndexError, match="120x60 image"):
        features.patch_at(120, 0)
