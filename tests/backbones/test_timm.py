import inspect

import numpy as np
import pytest
import timm
import torch
from helpers import noise, relative_error, results_in, save_images
from safetensors.torch import save_file
from torch import nn

from evals.segmentation import layouts
from sail_cli import main
from sail_encoder import UserError, VisionBackbone, load_backbone
from sail_encoder.backbones.registry import describe
from sail_encoder.backbones.timm import find_final_norm
from sail_encoder.store.reading import FeatureFolder

TINY = "test_vit"
"""One of timm's own small models for tests."""


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
        ("convnext_zepto_rms", 0, False),
        ("resnetv2_50", 0, False),
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
    hidden = backbone.model.forward_features(batch)
    if name.startswith("convnext"):
        hidden = backbone.model.head.norm(hidden)
    hidden = hidden[0].permute(1, 2, 0) if name.startswith(("resnet", "convnext")) else hidden[0]
    hidden = hidden.reshape(-1, backbone.embed_dim)[prefix:]
    # A model that pools first has its norm after that.
    hidden = getattr(backbone.model, "fc_norm", torch.nn.Identity())(hidden)
    # The states of resnetv2 are hundreds, and rounding follows the largest.
    scale = float(hidden.abs().max()) if name.startswith("resnetv2") else 1.0
    torch.testing.assert_close(features.grid.flatten(0, 1) / scale, hidden / scale)
    assert backbone.spec.has_class_token == bool(features.class_tokens) == has_class_token


@pytest.mark.parametrize("name", ["resnetv2_50d_frn", "resnetv2_50d_evos", "resnetv2_50d_gn"])
def test_a_norm_over_whole_maps_is_left_out(name):
    with torch.device("meta"):
        assert find_final_norm(timm.create_model(name, num_classes=0)) is None
    assert not describe(f"timm/{name}").has_final_norm


def test_timm_models_of_one_size_refuse_others():
    with pytest.raises(UserError, match="takes only images of 224x224; leave --resize at auto"):
        load_backbone("timm/mixer_s32_224", pretrained=False).encode([noise(64, 64)], resize="native")


def test_unknown_timm_models_name_a_near_one():
    with pytest.raises(UserError, match="there is vit_tiny_patch16_224"):
        load_backbone("timm/vit_tiny_patch16")


@pytest.fixture(scope="module")
def resnet():
    return load_backbone("timm/resnet18", pretrained=False)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_earlier_stages_have_patches_of_their_own(name):
    backbone, image = load_backbone(f"timm/{name}", pretrained=False), noise(100, 80)
    views = backbone.normalize(torch.tensor(backbone.prepare(image, backbone.spec.resize).views)[None])
    theirs = backbone.model.forward_intermediates(views, intermediates_only=True)
    for layer, map_ in enumerate(theirs):
        features = backbone.encode([image], layers=layer, norm=False)[0]
        torch.testing.assert_close(features.grid.permute(2, 0, 1)[None], map_)
        side = 224 // map_.shape[2]
        assert (features.patch_size, features.resized_size) == (side, (224, 224))
        spec = describe(f"timm/{name}").at([layer])
        assert (spec.patch_size, spec.embed_dim) == (side, map_.shape[1])
        if layer < len(theirs) - 1:
            torch.testing.assert_close(backbone.encode([image], layers=layer)[0].grid, features.grid)


def test_a_stage_keeps_the_size_of_images_in_its_own_patches(resnet):
    image = noise(60, 100)
    features = resnet.encode([image], layers=1, resize="native")[0]
    assert (features.patch_size, features.resized_size, features.grid_size) == (4, (60, 100), (15, 25))
    shallow = load_backbone("timm/resnet18", pretrained=False, layers=2)
    assert shallow.patch_size == 4
    assert shallow.spec.resize == resnet.spec.resize
    torch.testing.assert_close(shallow.encode([image], resize="native")[0].grid, features.grid)
    assert resnet.encode([image], resize="native")[0].resized_size == (96, 128)


def test_layers_of_one_call_share_their_patches(resnet):
    message = (
        "layers of timm/resnet18 differ in their patches, so that one call takes layers of one kind: 0 2 pixels and 64 "
        "channels; 1 4 pixels and 64 channels; 2 8 pixels and 128 channels; 3 16 pixels and 256 channels; 4 32 pixels "
        "and 512 channels"
    )
    x = torch.zeros(1, 3, 64, 64)
    for call in (
        lambda: resnet.encode([noise(64, 64)], layers=[1, 4]),
        lambda: resnet.get_intermediate_layers(x, 2),
        lambda: resnet.forward_intermediates(x, [1]),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert str(refused.value) == message
    (alone,) = resnet.forward_intermediates(x, [1], intermediates_only=True)
    final, (stopped,) = resnet.forward_intermediates(x, [1], stop_early=True)
    assert alone.shape == stopped.shape == (1, 64, 16, 16)
    assert final.shape == (1, 256, 64)


def test_stages_from_the_command_line(tmp_path, capsys):
    images, out = save_images(tmp_path / "images", 3), tmp_path / "out"
    command = ["extract", str(images), "--out", str(out), "--model", "timm/resnet18", "--random-weights"]
    assert main([*command, "--layers", "2", "--resize", "native"]) == 0
    folder = FeatureFolder(out)
    assert folder.spec.pretrained is False
    backbone = load_backbone("timm/resnet18", pretrained=False)
    for entry in folder.entries:
        grid = backbone.encode([images / entry.path], layers=2, resize="native")[0].grid
        assert relative_error(torch.tensor(folder.read(entry)), grid) < 1e-3
    assert main([*command, "--layers", "1,2"]) == 2
    assert "differ in their patches" in capsys.readouterr().err


def test_sizes_that_patches_do_not_tile_are_rounded_down():
    spec = describe("timm/vit_so400m_patch14_siglip_384")
    assert (spec.patch_size, spec.resize.fixed) == (14, (378, 378))


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory):
    """A model with weights of its own, with a classifier, in a file of each kind."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    model = timm.create_model(TINY, num_classes=10)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = model.state_dict()
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "plain.pth")
    torch.save(
        {"state_dict": {f"module.{name}": weight for name, weight in state.items()}, "epoch": 3}, folder / "t.pth"
    )
    return folder, model.eval()


@pytest.mark.parametrize("file", ["model.safetensors", "plain.pth", "t.pth", "."])
def test_weights_from_a_file_or_a_folder(own_weights, file):
    folder, model = own_weights
    backbone = load_backbone(f"timm/{TINY}", weights=str(folder / file))
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model.forward_features(x)[:, 1:]
    torch.testing.assert_close(backbone.get_intermediate_layers(x)[0], theirs)
    assert backbone.fingerprint(0) != load_backbone(f"timm/{TINY}", pretrained=False).fingerprint(0)


def test_weights_of_another_model_are_refused(own_weights, tmp_path):
    folder, model = own_weights
    file, name = tmp_path / "w.safetensors", f"timm/{TINY}"
    state = model.state_dict()
    for changed, message in [
        ({key: value for key, value in state.items() if key != "cls_token"}, "they lack 1, first cls_token"),
        ({**state, "more": torch.zeros(2)}, "they have 1 more, first more"),
        (
            {**state, "cls_token": torch.zeros(1, 1, 3)},
            r"cls_token is \[1, 1, 3\], but timm's test_vit has \[1, 1, 64\]",
        ),
    ]:
        save_file(changed, file)
        with pytest.raises(UserError, match=message):
            load_backbone(name, weights=str(file))
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no weights that can be read"):
        load_backbone(name, weights=str(file))
    torch.save({"state_dict": state, "args": inspect.signature}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="objects other than tensors"):
        load_backbone(name, weights=str(tmp_path / "code.pth"))
    with pytest.raises(UserError, match="no weights nowhere"):
        load_backbone(name, weights="nowhere")
    with pytest.raises(UserError, match="weights has no effect on raw/14; it is for timm checkpoints"):
        load_backbone("raw/14", weights=str(folder))


def test_weights_from_the_command_line(own_weights, tmp_path, capsys):
    folder, _ = own_weights
    images, file = save_images(tmp_path / "images", 2), str(folder / "plain.pth")
    command = ["extract", str(images), "--model", f"timm/{TINY}", "--out"]
    assert main([*command, str(tmp_path / "out"), "--weights", file]) == 0
    stored = FeatureFolder(tmp_path / "out")
    backbone = load_backbone(f"timm/{TINY}", weights=file)
    assert stored.spec.weights == backbone.fingerprint(backbone.num_layers - 1)
    grid = backbone.encode([images / "000.png"])[0].grid
    assert relative_error(torch.tensor(stored.read(stored.entries[0])), grid) < 1e-3
    for options, message in [
        (["--weights", file, "--random-weights"], "exclude each other"),
        (["--weights", "nowhere.pth"], "no weights nowhere.pth"),
        (["--model", "raw/14", "--random-weights"], "--random-weights has no effect on raw/14"),
        (["--model", "sail-tiny", "--weights", file], "weights has no effect on sail-tiny; it is for timm checkpoints"),
    ]:
        assert main([*command, str(tmp_path / "other"), *options]) == 2
        assert message in capsys.readouterr().err


def test_a_repository_of_timms_form(own_weights, tmp_path):
    _, model = own_weights
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    backbone = load_backbone(f"timm/local-dir:{tmp_path}")
    with torch.no_grad():
        theirs = model.forward_features(x)[:, 1:]
    torch.testing.assert_close(backbone.get_intermediate_layers(x)[0], theirs)
    assert describe(f"timm/local-dir:{tmp_path}") == backbone.spec
    with pytest.raises(UserError, match="cannot load 'local-dir:nowhere'"):
        describe("timm/local-dir:nowhere")


def test_repositories_on_the_hub(own_weights, monkeypatch):
    """timm reads their config.json alone; their weights are read here, as those of any checkpoint."""
    folder, model = own_weights
    built, found = [], []
    create = timm.create_model

    def create_model(name, pretrained, **options):
        built.append((name, pretrained))
        return create(TINY, pretrained, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr("sail_encoder.backbones.timm.find_checkpoint", lambda *place: found.append(place) or folder)
    assert describe("timm/hf-hub:somebody/vit").embed_dim == 64
    backbone = load_backbone("timm/hf-hub:somebody/vit@main")
    assert found == [("somebody/vit", "main")]
    assert built == [("hf-hub:somebody/vit", False), ("hf-hub:somebody/vit@main", False)]
    torch.testing.assert_close(backbone.model.cls_token.data, model.cls_token.data)


@pytest.mark.parametrize("command", ["pca", "similarity", "match"])
def test_pictures_of_random_weights(command, tmp_path):
    images = [str(save_images(tmp_path / "images", 2) / name) for name in ("000.png", "001.png")]
    model, layer, given = "--model", "--layer", images[:1]
    if command == "pca":
        model, layer = "--models", "--layers"
    given += ["--at", "0,0"] if command == "similarity" else images[1:] if command == "match" else []
    for name, options in (("a.npy", []), ("b.npy", []), ("c.npy", [layer, "0"])):
        out = ["--out", str(tmp_path / name), model, f"timm/{TINY}", "--random-weights"]
        assert main([command, *given, *out, *options]) == 0
    first, again, other = (np.load(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy"))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.allclose(first, other)


def test_probes_and_sweeps_of_random_weights(tmp_path):
    common = ["digits", "--model", f"timm/{TINY}", "--random-weights", "--resize", "32", "--plots", "false"]
    assert main(["probe", *common, "--out", str(tmp_path / "p"), "--probes", "ridge", "--baselines"]) == 0
    titles = [result["features"] for result in results_in(tmp_path / "p")]
    assert titles == ["raw pixels, 16x16", f"timm/{TINY}, random weights"]
    assert main(["sweep", *common, "--out", str(tmp_path / "s"), "--probes", "ridge"]) == 0


def test_heads_remember_that_weights_were_random(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "SPLITS", {"training": range(8), "validation": range(8, 12)})
    train = ["segment", "train", "scenes", "--out", str(tmp_path / "h"), "--model", f"timm/{TINY}", "--random-weights"]
    sizes = ["--resize", "64", "--crop", "64", "--steps", "2", "--warmup", "0", "--batch-size", "2", "--head", "linear"]
    assert main([*train, *sizes]) == 0
    assert (
        main(
            [
                "segment",
                "eval",
                str(tmp_path / "h" / "scenes"),
                "--head",
                str(tmp_path / "h"),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 0
    )
