import random

import numpy as np
import pytest
import torch
from helpers import noise, relative_error

from sail_encoder import Resize, UserError, load_backbone


def images_of_many_sizes(count=32):
    rng = np.random.default_rng(3)
    return [noise(int(h), int(w), seed) for seed, (h, w) in enumerate(rng.integers(10, 200, (count, 2)))]


def test_a_batch_of_32_sizes_gives_what_one_by_one_gives(golden_backbone):
    images = images_of_many_sizes()
    alone = [golden_backbone.encode([image], layers=[0, -1])[0] for image in images]
    assert len({features.image_size for features in alone}) == 32
    for budget in (1, 100, 333, 100_000):
        together = golden_backbone.encode(images, layers=[0, -1], token_budget=budget)
        for one, other in zip(alone, together, strict=True):
            assert one.grid_size == other.grid_size
            for layer in one.layers:
                assert relative_error(other.layers[layer], one.layers[layer]) < 1e-5


def test_any_order_gives_the_same(golden_backbone):
    images = images_of_many_sizes()
    order = list(range(32))
    random.Random(0).shuffle(order)
    straight = golden_backbone.encode(images)
    shuffled = golden_backbone.encode([images[index] for index in order])
    for position, index in enumerate(order):
        assert relative_error(shuffled[position].grid, straight[index].grid) < 1e-5


def test_resizing_by_text_and_by_rule(small_backbone):
    image = noise(50, 100)
    sizes = [
        small_backbone.encode([image], resize=rule)[0].grid_size for rule in ("auto", "28x42", "28", Resize(None, 6))
    ]
    assert sizes == [(4, 8), (2, 3), (2, 2), (1, 3)]


def test_features_can_train_a_head(small_backbone):
    features = small_backbone.encode([noise(28, 28)])[0]
    head = torch.nn.Linear(64, 2)
    head(features.pool("mean")).sum().backward()
    assert head.weight.grad is not None


def test_options_for_sail_are_refused_elsewhere():
    with pytest.raises(UserError, match=r"revision has no effect on timm/resnet18; it is for checkpoints on the Hub"):
        load_backbone("timm/resnet18", pretrained=False, revision="main")
    with pytest.raises(UserError, match=r"image_token_id has no effect on raw/14"):
        load_backbone("raw/14", image_token_id=3)
    with pytest.raises(UserError, match="layer has no effect on sail-tiny"):
        load_backbone("sail-tiny", layer=3)


def test_a_batch_array_is_a_list_of_images(small_backbone):
    batch = np.stack([noise(28, 28, 1), noise(28, 28, 2)])
    grids = [features.grid for features in small_backbone.encode(batch)]
    torch.testing.assert_close(grids[1], small_backbone.encode([batch[1]])[0].grid)


def test_devices_and_precisions_of_torch_are_understood():
    backbone = load_backbone("raw/14", torch.device("cpu"), torch.bfloat16)
    assert (backbone.dtype, backbone.device) == (torch.bfloat16, torch.device("cpu"))
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        load_backbone("raw/14", dtype=torch.int8)
