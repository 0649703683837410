import inspect
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise, relative_error
from PIL import Image

from sail_encoder import Resize, UserError, VisionBackbone, load_backbone


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


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 6), (4, 1)])
def test_a_changed_patch_shows_at_its_place_in_a_non_square_grid(small_backbone, row, column):
    image = np.full((5 * 14, 7 * 14, 3), 128, np.uint8)
    changed = image.copy()
    changed[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = 255
    before, after = small_backbone.encode([image, changed], layers=0, norm=False)
    assert before.grid_size == (5, 7)
    difference = (after.grid - before.grid).norm(dim=-1)
    assert divmod(int(difference.argmax()), 7) == (row, column)
    assert after.patch_box(row, column) == (column * 14, row * 14, column * 14 + 14, row * 14 + 14)


def test_resizing_by_text_and_by_rule(small_backbone):
    image = noise(50, 100)
    sizes = [
        small_backbone.encode([image], resize=rule)[0].grid_size for rule in ("auto", "28x42", "28", Resize(None, 6))
    ]
    assert sizes == [(4, 8), (2, 3), (2, 2), (1, 3)]


def test_norm(small_backbone):
    raw = small_backbone.encode([noise(28, 28)], layers=1, norm=False)[0].grid
    normed = small_backbone.encode([noise(28, 28)], layers=1)[0].grid
    torch.testing.assert_close(small_backbone.model.norm(raw), normed)
    assert relative_error(raw, normed) > 1e-2


def test_intermediate_layers_mean_what_dinov2_and_timm_mean(small_backbone):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 28, 42)
    flat = small_backbone.get_intermediate_layers(x, 2)
    grids = small_backbone.get_intermediate_layers(x, [1, 2], reshape=True)
    assert [tuple(layer.shape) for layer in flat] == [(2, 6, 64)] * 2
    assert [tuple(layer.shape) for layer in grids] == [(2, 64, 2, 3)] * 2
    torch.testing.assert_close(flat[1], grids[1].flatten(2).transpose(1, 2))
    final, layers = small_backbone.forward_intermediates(x, indices=[0, 2])
    torch.testing.assert_close(final, flat[1])
    torch.testing.assert_close(small_backbone.model.norm(layers[1].flatten(2).transpose(1, 2)), final)
    only = small_backbone.forward_intermediates(x, norm=True, output_fmt="NLC", intermediates_only=True)
    assert len(only) == 3
    torch.testing.assert_close(only[2], final)
    final, layers = small_backbone.forward_intermediates(x, [0, 1], norm=True, stop_early=True, output_fmt="NLC")
    torch.testing.assert_close(final, layers[1])
    with pytest.raises(UserError, match="use NCHW or NLC"):
        small_backbone.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(UserError, match="no class token"):
        small_backbone.get_intermediate_layers(x, return_class_token=True)
    with pytest.raises(UserError, match=r"pass \[n, 3, 14\*a, 14\*b\]"):
        small_backbone.get_intermediate_layers(torch.randn(2, 3, 30, 28))


def test_features_can_train_a_head(small_backbone):
    features = small_backbone.encode([noise(28, 28)])[0]
    head = torch.nn.Linear(64, 2)
    head(features.pool("mean")).sum().backward()
    assert head.weight.grad is not None


@pytest.fixture(scope="module")
def vit():
    return load_backbone("timm/vit_tiny_patch16_224", pretrained=False)


def test_timm_model_gives_what_timm_gives(vit):
    image = noise(300, 200)
    features = vit.encode([image], layers=[3, -1])[0]
    assert features.grid_size == (14, 14)
    assert list(features.layers) == [3, 11]
    batch = vit.normalize(torch.from_numpy(vit.prepare(image, vit.spec.resize).views)[None])
    assert batch.shape == (1, 3, 224, 224)
    (spatial, prefix), _ = vit.model.forward_intermediates(
        batch, [3, 11], return_prefix_tokens=True, norm=True, intermediates_only=True
    )
    torch.testing.assert_close(features.layers[3].permute(2, 0, 1)[None], spatial)
    torch.testing.assert_close(features.class_tokens[3], prefix[0, 0])
    torch.testing.assert_close(features.pool("cls", layer=3), prefix[0, 0])


def test_timm_batches_mixed_sizes(vit):
    images = [noise(40, 60, 1), noise(90, 33, 2), noise(40, 60, 3)]
    together = vit.encode(images, resize="native")
    for image, features in zip(images, together, strict=True):
        alone = vit.encode([image], resize="native")[0]
        assert features.grid_size == alone.grid_size
        assert relative_error(features.grid, alone.grid) < 1e-5


def test_timm_stages_of_other_sizes_are_refused():
    backbone = load_backbone("timm/resnet18", pretrained=False)
    assert backbone.encode([noise(64, 64)])[0].grid.shape == (7, 7, 512)
    with pytest.raises(UserError, match="patches of 2 pixels, not 32"):
        backbone.encode([noise(64, 64)], layers=0)


def parameters(method):
    kinds = inspect.signature(method).parameters.values()
    return [(parameter.name, parameter.default) for parameter in kinds if parameter.name != "self"]


def test_forward_intermediates_is_called_like_timms(vit):
    ours, theirs = (parameters(kind.forward_intermediates) for kind in (VisionBackbone, type(vit.model)))
    assert ours == theirs[: len(ours)]
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for options in ({"indices": [2, 5], "norm": True}, {"indices": 2, "stop_early": True}, {"output_fmt": "NLC"}):
        final, layers = vit.forward_intermediates(x, return_prefix_tokens=True, **options)
        their_final, their_layers = vit.model.forward_intermediates(x, return_prefix_tokens=True, **options)
        torch.testing.assert_close(final, their_final[:, 1:])
        for (ours, our_prefix), (theirs, their_prefix) in zip(layers, their_layers, strict=True):
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(our_prefix, their_prefix)


@pytest.mark.parametrize(
    ("name", "prefix", "has_class_token"),
    [
        ("vit_medium_patch16_reg4_gap_256", 4, False),
        ("deit_tiny_distilled_patch16_224", 2, True),
        ("swin_tiny_patch4_window7_224", 0, False),
        ("cait_xxs24_224", 1, False),
        ("resnet18", 0, False),
    ],
)
def test_the_last_layer_is_the_last_hidden_state_of_any_timm_model(name, prefix, has_class_token):
    backbone = load_backbone(f"timm/{name}", pretrained=False)
    torch.manual_seed(0)
    for parameter in backbone.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    image = noise(100, 80)
    features = backbone.encode([image])[0]
    rows, columns = features.grid_size
    batch = backbone.normalize(torch.from_numpy(backbone.prepare(image, backbone.spec.resize).views)[None])
    assert batch.shape == (1, 3, rows * backbone.patch_size, columns * backbone.patch_size)
    hidden = backbone.model.forward_features(batch)[0]
    if name == "resnet18":
        hidden = hidden.permute(1, 2, 0)
    hidden = hidden.reshape(-1, backbone.embed_dim)[prefix:]
    torch.testing.assert_close(features.grid.flatten(0, 1), hidden)
    assert backbone.spec.has_class_token == bool(features.class_tokens) == has_class_token


def test_timm_models_of_one_size_refuse_others():
    with pytest.raises(UserError, match="takes only images of 224x224; leave --resize at auto"):
        load_backbone("timm/mixer_s32_224", pretrained=False).encode([noise(64, 64)], resize="native")


def test_options_for_sail_are_refused_elsewhere():
    with pytest.raises(UserError, match=r"revision has no effect on timm/resnet18; it is for checkpoints on the Hub"):
        load_backbone("timm/resnet18", pretrained=False, revision="main")
    with pytest.raises(UserError, match=r"image_token_id has no effect on raw/14"):
        load_backbone("raw/14", image_token_id=3)
    with pytest.raises(UserError, match="layer has no effect on sail-tiny"):
        load_backbone("sail-tiny", layer=3)


@pytest.mark.parametrize(
    "image", ["cat.jpg", Path("cat.jpg"), b"", noise(20, 30), torch.zeros(3, 28, 28), Image.new("RGB", (20, 30))]
)
def test_one_image_without_a_list(small_backbone, image):
    with pytest.raises(UserError, match="takes a list of images"):
        small_backbone.encode(image)


def test_a_batch_array_is_a_list_of_images(small_backbone):
    batch = np.stack([noise(28, 28, 1), noise(28, 28, 2)])
    grids = [features.grid for features in small_backbone.encode(batch)]
    torch.testing.assert_close(grids[1], small_backbone.encode([batch[1]])[0].grid)


def test_devices_and_precisions_of_torch_are_understood():
    backbone = load_backbone("raw/14", torch.device("cpu"), torch.bfloat16)
    assert (backbone.dtype, backbone.device) == (torch.bfloat16, torch.device("cpu"))
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        load_backbone("raw/14", dtype=torch.int8)


def test_unknown_timm_models_name_a_near_one():
    with pytest.raises(UserError, match="there is vit_tiny_patch16_224"):
        load_backbone("timm/vit_tiny_patch16")
