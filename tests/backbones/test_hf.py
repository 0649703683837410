import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from helpers import noise, relative_error
from safetensors.torch import load_file, save_file

from sail_encoder import UserError, load_backbone
from sail_encoder.backbones.hf_config import ARCHITECTURES
from sail_encoder.backbones.registry import describe
from sail_encoder.images.resizing import Resize

ALL = list(tiny_models.MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name and model of each kind, saved once."""
    saved = {}

    def get(name):
        if name not in saved:
            model = tiny_models.build(name)
            saved[name] = tiny_models.save(model, tmp_path_factory.mktemp(name)), model
        return saved[name]

    return get


def last_hidden_state(model, batch, name):
    asked = {"interpolate_pos_encoding": True} if name in ("siglip", "clip", "vit") else {}
    return model(batch, output_hidden_states=True, **asked)


@pytest.mark.parametrize("name", ALL)
def test_features_are_those_of_transformers(folders, name):
    place, model = folders(name)
    backbone = load_backbone(place)
    rows, columns = (4, 4) if name == "aimv2" else (3, 5)
    batch = torch.randn(2, 3, 14 * rows, 14 * columns, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = last_hidden_state(model, batch, name)
    prefix = theirs.last_hidden_state.shape[1] - rows * columns
    assert prefix == backbone.spec.extra_tokens
    (raw,) = backbone.get_intermediate_layers(batch, 1, norm=False)
    (normed,) = backbone.get_intermediate_layers(batch, 1)
    torch.testing.assert_close(raw, theirs.hidden_states[-1][:, prefix:])
    if name == "clip":
        # transformers leaves the patches as they are; the class token alone is normed, as its pooled output.
        torch.testing.assert_close(raw, theirs.last_hidden_state[:, prefix:])
        (_, token), *_ = backbone.get_intermediate_layers(batch, 1, return_class_token=True)
        torch.testing.assert_close(token, theirs.pooler_output)
    else:
        torch.testing.assert_close(normed, theirs.last_hidden_state[:, prefix:])
    first, second = backbone.get_intermediate_layers(batch, [0, 1], norm=False)
    torch.testing.assert_close(first, theirs.hidden_states[1][:, prefix:])
    torch.testing.assert_close(second, theirs.hidden_states[2][:, prefix:])


@pytest.mark.parametrize("name", ALL)
def test_nothing_beyond_the_deepest_layer_is_computed_or_loaded(folders, name):
    place, _ = folders(name)
    backbone, shallow = load_backbone(place), load_backbone(place, layers=2)
    assert (len(shallow.blocks), shallow.num_layers) == (2, 2)
    images = [noise(30, 50)]
    torch.testing.assert_close(shallow.encode(images)[0].grid, backbone.encode(images, layers=1)[0].grid)
    ran = []
    for index, block in enumerate(backbone.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    backbone.encode(images, layers=[1, 0])
    assert ran == [0, 1]
    with pytest.raises(UserError, match="has 1 to 3"):
        load_backbone(place, layers=4)


@pytest.mark.parametrize("name", ALL)
def test_descriptions_count_what_features_need(folders, name):
    place, _ = folders(name)
    spec, backbone = describe(place), load_backbone(place)
    assert spec == backbone.spec
    needed = (weight for key, weight in backbone.model.named_parameters() if "mask_token" not in key)
    assert spec.parameters() == sum(weight.numel() for weight in needed)
    assert {type(field) for field in (spec.patch_size, spec.embed_dim)} == {int}


def test_defaults_are_those_of_transformers():
    own = {"gated_mlp", "patch_bias", "proj_bias"}
    for model_type, architecture in ARCHITECTURES.items():
        config = getattr(transformers, architecture.model).config_class()
        assert config.model_type == model_type
        theirs = config.to_dict()
        known = {name: value for name, value in architecture.defaults.items() if name not in own or name in theirs}
        assert known == {name: json.loads(json.dumps(theirs[name])) for name in known}


@pytest.mark.parametrize(
    ("model_type", "processor"),
    [
        ("dinov3_vit", "DINOv3ViTImageProcessor"),
        ("siglip_vision_model", "SiglipImageProcessor"),
        ("clip_vision_model", "CLIPImageProcessor"),
        ("aimv2_vision_model", "CLIPImageProcessor"),
        ("vit", "ViTImageProcessor"),
    ],
)
def test_normalisation_without_a_file_is_that_of_transformers(model_type, processor):
    theirs, ours = getattr(transformers, processor)(), ARCHITECTURES[model_type]
    assert (tuple(theirs.image_mean), tuple(theirs.image_std)) == (ours.mean, ours.std)
    assert theirs.resample.name == ours.resample


def test_the_image_processor_of_the_model_decides(folders, tmp_path):
    model = folders("dinov2")[1]
    name = tiny_models.save(
        model,
        tmp_path / "a",
        **{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2},
        **{"size": {"shortest_edge": 256}, "crop_size": {"height": 70, "width": 85}, "do_center_crop": True},
    )
    spec = describe(name)
    assert (spec.image_mean, spec.image_std, spec.resample) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "BILINEAR")
    # 85 pixels are six whole patches.
    assert spec.resize == Resize((70, 84))
    assert load_backbone(name).encode([noise(33, 44)])[0].grid_size == (5, 6)


@pytest.mark.parametrize(
    ("fields", "mean", "std"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"do_rescale": False, "image_mean": [128] * 3, "image_std": [64] * 3}, 128 / 255, 64 / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, 0.5, 0.5),
    ],
)
def test_any_scale_of_pixels(folders, tmp_path, fields, mean, std):
    spec = describe(tiny_models.save(folders("vit")[1], tmp_path / "a", size=56, **fields))
    np.testing.assert_allclose(spec.image_mean, [mean] * 3)
    np.testing.assert_allclose(spec.image_std, [std] * 3)
    assert spec.resize.fixed == (56, 56)


def test_pixels_are_those_of_the_image_processor(folders, tmp_path):
    processor = transformers.SiglipImageProcessor(size={"height": 56, "width": 56})
    name = folders("siglip")[1]
    place = tiny_models.save(name, tmp_path / "a")
    processor.save_pretrained(tmp_path / "a")
    backbone = load_backbone(place)
    image = noise(56, 56)
    ours = backbone.normalize(torch.tensor(backbone.prepare(image, backbone.spec.resize).views)[None])
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", list(tiny_models.WHOLES))
def test_a_tower_is_taken_out_of_a_whole_model(name, tmp_path):
    whole = tiny_models.build_whole(name)
    place = tiny_models.save(whole, tmp_path / "whole")
    backbone = load_backbone(place)
    tower = whole.model.vision_tower if name == "internvl" else whole.vision_model
    batch = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = last_hidden_state(tower, batch, name)
    (ours,) = backbone.get_intermediate_layers(batch, 1, norm=False)
    torch.testing.assert_close(ours, theirs.hidden_states[-1][:, backbone.spec.extra_tokens :])
    assert describe(place) == backbone.spec


def test_random_weights_need_no_weights_and_are_always_the_same(folders, tmp_path):
    folders("dinov3_vit")[1].config.save_pretrained(tmp_path)
    one, other = (load_backbone(f"hf/{tmp_path}", pretrained=False) for _ in range(2))
    assert one.fingerprint(2) == other.fingerprint(2) != load_backbone(folders("dinov3_vit")[0]).fingerprint(2)
    assert one.encode([noise(30, 50)])[0].grid.isfinite().all()
    with pytest.raises(UserError, match="has no weights"):
        load_backbone(f"hf/{tmp_path}")


def test_pickles_are_read_where_they_hold_nothing_but_tensors(folders, tmp_path):
    place, model = folders("clip")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    image = noise(30, 50)
    assert (
        relative_error(
            load_backbone(f"hf/{tmp_path}").encode([image])[0].grid, load_backbone(place).encode([image])[0].grid
        )
        < 1e-6
    )
    torch.save({**model.state_dict(), "more": subprocess.Popen}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds objects other than tensors"):
        load_backbone(f"hf/{tmp_path}")


def test_weights_that_are_missing_are_named(folders, tmp_path):
    place, _ = folders("dinov2")
    source = place.removeprefix("hf/")
    shutil.copy(f"{source}/config.json", tmp_path)
    weights = load_file(f"{source}/model.safetensors")
    dropped = next(name for name in weights if "layer.1.mlp.fc1.weight" in name)
    save_file({name: weight for name, weight in weights.items() if name != dropped}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 weights of a dinov2, first encoder.layer.1.mlp.fc1.weight"):
        load_backbone(f"hf/{tmp_path}")


def test_positions_that_cannot_be_interpolated(folders):
    backbone = load_backbone(folders("aimv2")[0])
    with pytest.raises(UserError, match="takes only images of 56x56; leave --resize at auto"):
        backbone.encode([noise(64, 64)], resize="native")
    assert load_backbone(folders("aimv2_native")[0]).encode([noise(64, 30)], resize="native")[0].grid_size == (5, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip2"}, "NaFlex towers read padded patches; take a SigLIP2 checkpoint of one size"),
        (
            {"model_type": "qwen2_5_vl"},
            "'qwen2_5_vl' model, which hf/ does not load: its tower reads patches in windows",
        ),
        ({"model_type": "bert"}, "supported are dinov2, "),
        ({"model_type": "vit", "hidden_size": "big"}, "hidden_size cannot be 'big'; allowed is a whole number from 1"),
        ({"model_type": "vit", "qkv_bias": "always"}, "does not describe a model"),
        ([], "holds no fields"),
    ],
)
def test_what_is_no_vision_model(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_backbone(f"hf/{tmp_path}", pretrained=False)


def test_a_place_without_a_model(tmp_path):
    with pytest.raises(UserError, match=r"has no config.json"):
        describe(f"hf/{tmp_path}")
    with pytest.raises(UserError, match="no model 'nowhere'"):
        describe("hf/nowhere")


def test_code_in_a_checkpoint_is_never_run(folders, tmp_path):
    place, model = folders("vit")
    tiny_models.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    image = noise(30, 50)
    torch.testing.assert_close(
        load_backbone(f"hf/{tmp_path}").encode([image])[0].grid, load_backbone(place).encode([image])[0].grid
    )


def test_a_description_imports_neither_torch_nor_transformers(folders):
    code = (
        "import sys; from sail_encoder.backbones.registry import describe; "
        f"describe({folders('clip')[0]!r}); print({{'torch', 'transformers'}} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert result.stderr == ""


def test_loading_is_quiet(tmp_path):
    place = tiny_models.save(tiny_models.build_whole("clip"), tmp_path / "whole")
    code = f"from sail_encoder import load_backbone; load_backbone({place!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
