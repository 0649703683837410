"""What holds for every backbone: the order of grids, layers, norm, batches, precision, pooling, and what is refused."""

from pathlib import Path

import pytest
import tiny_models
import torch
from helpers import noise, relative_error
from PIL import Image
from sail_vl_golden import CHECKPOINTS, golden_set

from sail_encoder import UserError, load_backbone
from sail_encoder.backbones.registry import describe

TRANSFORMERS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip", "clip", "vit", "aimv2_native", "internvl")
NAMES = ["sail-tiny", "raw/14", "timm/vit_tiny_patch16_224", *(f"hf/{name}" for name in TRANSFORMERS), *CHECKPOINTS]
RANDOM = ("timm/vit_tiny_patch16_224",)
"""Without weights here."""


@pytest.fixture(scope="module", params=NAMES)
def place(request, tmp_path_factory):
    """What a backbone is loaded as."""
    if request.param.startswith("hf/"):
        name = request.param.removeprefix("hf/")
        return tiny_models.save(tiny_models.build(name), tmp_path_factory.mktemp(name))
    return str(golden_set(request.param).checkpoint) if request.param in CHECKPOINTS else request.param


def load(place, **options):
    return load_backbone(place, pretrained=place not in RANDOM, **options)


@pytest.fixture(scope="module")
def backbone(place):
    return load(place)


@pytest.fixture(scope="module")
def image(backbone):
    """An image of 3 x 5 patches."""
    return noise(3 * backbone.patch_size, 5 * backbone.patch_size)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 4), (2, 0), (1, 3)])
def test_patches_lie_in_the_grid_where_they_lie_in_the_image(backbone, row, column):
    p = backbone.patch_size
    where = slice(row * p, row * p + p), slice(column * p, column * p + p)
    moved = torch.zeros(3, 5)
    for seed in range(4):
        changed = (image := noise(3 * p, 5 * p, seed)).copy()
        changed[where] = 255 - changed[where]
        before, after = backbone.encode([image, changed], layers=0, norm=False, resize="native")
        assert before.grid_size == (3, 5)
        moved += (after.grid - before.grid).norm(dim=-1)
    assert divmod(int(moved.argmax()), 5) == (row, column)
    assert after.patch_box(row, column) == (column * p, row * p, column * p + p, row * p + p)


def test_layers_come_in_the_order_asked_for(backbone, image):
    last = backbone.num_layers - 1
    layers = [-1, 0] if last else [0]
    (features,) = backbone.encode([image], layers=layers, norm=False, resize="native")
    assert list(features.layers) == [layer % backbone.num_layers for layer in layers]
    for layer in features.layers:
        (alone,) = backbone.encode([image], layers=layer, norm=False, resize="native")
        assert relative_error(alone.grid, features.layers[layer]) < 1e-5
        assert alone.grid.shape == (3, 5, backbone.embed_dim)
    if last:
        assert relative_error(features.layers[0], features.layers[last]) > 1e-2


def test_norm_is_the_final_norm_of_the_model_on_every_layer(backbone, image):
    layers = list(range(backbone.num_layers))
    raw, normed = (backbone.encode([image], layers, norm=norm, resize="native")[0] for norm in (False, True))
    for layer in layers:
        torch.testing.assert_close(backbone.final_norm(raw.layers[layer]), normed.layers[layer], rtol=1e-4, atol=1e-5)
    for layer, token in raw.class_tokens.items():
        torch.testing.assert_close(backbone.final_norm(token), normed.class_tokens[layer], rtol=1e-4, atol=1e-5)


def test_batches_give_what_one_by_one_gives(backbone):
    p = backbone.patch_size
    sizes = [(p, p), (4 * p, 2 * p), (2 * p + 3, 3 * p - 1), (4 * p, 2 * p), (30, 71), (2 * p, 4 * p)]
    images = [noise(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    alone = [backbone.encode([image], layers="all", resize="native")[0] for image in images]
    assert len({features.grid_size for features in alone}) > 3
    for budget in (1, 12, 10_000):
        together = backbone.encode(images, layers="all", resize="native", token_budget=budget)
        for one, other in zip(alone, together, strict=True):
            assert (one.grid_size, one.image_size) == (other.grid_size, other.image_size)
            for layer in one.layers:
                assert relative_error(other.layers[layer], one.layers[layer]) < 1e-4
            for layer in one.class_tokens:
                assert relative_error(other.class_tokens[layer], one.class_tokens[layer]) < 1e-4


def test_half_precision_is_near(place, backbone, image):
    half = load(place, dtype="bfloat16")
    assert (half.dtype, backbone.dtype) == (torch.bfloat16, torch.float32)
    (rounded,), (exact,) = (one.encode([image], resize="native") for one in (half, backbone))
    assert rounded.grid.dtype == torch.bfloat16
    assert relative_error(rounded.grid, exact.grid) < 0.05
    assert half.fingerprint(half.num_layers - 1) == backbone.fingerprint(backbone.num_layers - 1)


def test_pooling_and_class_tokens(backbone, image):
    (features,) = backbone.encode([image], layers="all", resize="native")
    patches = features.grid.flatten(0, 1)
    torch.testing.assert_close(features.pool("mean"), patches.mean(0))
    torch.testing.assert_close(features.pool("max", layer=0), features.layers[0].flatten(0, 1).amax(0))
    between = features.pool("gem").abs()
    assert (between <= patches.abs().amax(0) + 1e-5).all()
    assert backbone.spec.has_class_token == bool(features.class_tokens)
    if not backbone.spec.has_class_token:
        for how in ("cls", "cls_mean"):
            with pytest.raises(UserError, match=f"pooling '{how}' needs a class token"):
                features.pool(how)
        return
    assert list(features.class_tokens) == list(features.layers)
    last = backbone.num_layers - 1
    torch.testing.assert_close(features.pool("cls"), features.class_tokens[last])
    torch.testing.assert_close(features.pool("cls_mean"), torch.cat([features.class_tokens[last], patches.mean(0)]))
    assert relative_error(patches, features.class_tokens[last].expand_as(patches)) > 1e-2


def test_it_is_described_as_it_is_loaded(place, backbone):
    assert describe(place) == backbone.spec
    model = getattr(backbone, "model", None)
    weights = model.named_parameters() if model is not None else ()
    needed = sum(weight.numel() for name, weight in weights if "mask_token" not in name)
    assert backbone.spec.parameters() == needed


def test_fewer_blocks_give_the_same_features(place, backbone, image):
    shallow = load(place, layers=1)
    assert shallow.num_layers == 1
    (one,), (other,) = (b.encode([image], layers=0, resize="native") for b in (shallow, backbone))
    assert relative_error(one.grid, other.grid) < 1e-5
    assert shallow.fingerprint(0) == backbone.fingerprint(0)
    with pytest.raises(UserError, match=r"cannot be loaded; .* has (1 to|one layer)"):
        load(place, layers=backbone.num_layers + 1)


def test_intermediate_layers_mean_what_dinov2_and_timm_mean(backbone):
    p, dim, last = backbone.patch_size, backbone.embed_dim, backbone.num_layers - 1
    x = torch.randn(2, 3, 2 * p, 3 * p, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (flat,) = backbone.get_intermediate_layers(x)
        (grid,) = backbone.get_intermediate_layers(x, [last], reshape=True)
        final, layers = backbone.forward_intermediates(x)
        only = backbone.forward_intermediates(x, [0], norm=True, output_fmt="NLC", intermediates_only=True)
        stopped, (first,) = backbone.forward_intermediates(x, [0], stop_early=True, output_fmt="NLC")
    assert flat.shape == (2, 6, dim)
    assert grid.shape == (2, dim, 2, 3)
    torch.testing.assert_close(flat, grid.flatten(2).transpose(1, 2))
    torch.testing.assert_close(final, flat, rtol=1e-4, atol=1e-5)
    assert [tuple(layer.shape) for layer in layers] == [(2, dim, 2, 3)] * (last + 1)
    torch.testing.assert_close(stopped, only[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.final_norm(first), only[0], rtol=1e-4, atol=1e-5)
    if backbone.spec.has_class_token:
        ((_, token),) = backbone.get_intermediate_layers(x, return_class_token=True)
        _, ((_, prefix), *_) = backbone.forward_intermediates(x, [last], norm=True, return_prefix_tokens=True)
        assert token.shape == (2, dim)
        torch.testing.assert_close(prefix[:, 0], token)
    else:
        with pytest.raises(UserError, match="no class token"):
            backbone.get_intermediate_layers(x, return_class_token=True)


def test_what_is_not_possible_is_one_line(backbone, image):
    p, count = backbone.patch_size, backbone.num_layers
    for call, message in [
        (lambda: backbone.encode([image], layers=count), f"layer {count} does not exist; this model has -{count} to"),
        (lambda: backbone.encode([image], layers=[0, 0]), "a layer twice"),
        (lambda: backbone.encode([image], resize=f"{p + 1}x{p}"), f"not a multiple of the patch size {p}"),
        (lambda: backbone.encode([image], resize="big"), "not understood"),
        (lambda: backbone.get_intermediate_layers(torch.zeros(1, 3, p + 1, p)), "cannot be cut into patches"),
        (lambda: backbone.get_intermediate_layers(torch.zeros(3, p, p)), "cannot be cut into patches"),
        (lambda: backbone.forward_intermediates(torch.zeros(1, 3, p, p), output_fmt="NHWC"), "use NCHW or NLC"),
    ]:
        with pytest.raises(UserError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "one", ["cat.jpg", Path("cat.jpg"), b"", noise(20, 30), torch.zeros(3, 28, 28), Image.new("RGB", (20, 30))]
)
def test_one_image_without_a_list(backbone, one):
    with pytest.raises(UserError, match="takes a list of images"):
        backbone.encode(one)
