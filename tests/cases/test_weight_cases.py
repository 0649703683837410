"""Inputs that have failed before: weights that are quantised, and weights that are no numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from case_helpers import sail, says_one_line
from helpers import GOLDEN, save_images
from safetensors.torch import load_file, save_file

import sail_encoder

TINY = Path(sail_encoder.__file__).parent / "tiny"
SETS = GOLDEN.parent
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


def save_dinov2(folder):
    import transformers

    transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2)).save_pretrained(folder)


def save_timm(folder):
    import timm

    folder.mkdir()
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


FAMILIES = {
    "sail": (lambda folder: shutil.copytree(TINY, folder), "layers.0.mlp.up_proj.weight"),
    "sail_vl": (lambda folder: shutil.copytree(SETS / "sail_vl2" / "checkpoint", folder), "blocks.0.mlp.fc2.weight"),
    "pixel_sail": (lambda folder: shutil.copytree(SETS / "pixel_sail" / "checkpoint", folder), "k_proj.weight"),
    "hf": (save_dinov2, "encoder.layer.0.mlp.fc1.weight"),
    "timm": (save_timm, "blocks.0.mlp.fc1.weight"),
}
"""How a checkpoint of each family comes into a folder, and the end of the name of a weight that its features need."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photos"), 1)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A checkpoint of each family, made when it is first asked for."""
    place = tmp_path_factory.mktemp("originals")

    def original(family):
        if not (place / family).exists():
            FAMILIES[family][0](place / family)
        return place / family

    return original


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, originals, tmp_path):
    copied = shutil.copytree(originals(family), tmp_path / "model")
    copied.chmod(0o755)
    return copied


def weights_of(folder):
    return next(iter(folder.glob("*.safetensors")))


def change(folder, family, edit):
    """Rewrites one weight: `edit` gives the tensors that take its place, by what follows its module's name."""
    file, end = weights_of(folder), FAMILIES[family][1]
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(end))
    new = edit(tensors.pop(name))
    file.chmod(0o644)
    save_file({**tensors, **{name.removesuffix("weight") + key: value for key, value in new.items()}}, file)
    return name


def use(folder, family, photos):
    """Uses a checkpoint as each family's users do."""
    if family == "pixel_sail":
        asked = [photos / "000.png", "the red one", "--out", folder.parent / "out", "--device", "cpu"]
        return sail("segment", "refer", *asked, "--model", folder)
    names = {"hf": ["--model", f"hf/{folder}"], "timm": ["--model", "timm/vit_tiny_patch16_224", "--weights", folder]}
    model = names.get(family, ["--model", folder])
    return sail("extract", photos, "--out", folder.parent / "out", *model, "--devices", "cpu")


def to_int8(weight):
    scale = weight.float().abs().amax(1)
    return {"weight": (weight.float() / scale[:, None] * 127).round().to(torch.int8), "SCB": scale}


def to_int4(weight):
    groups = weight.shape[0], weight.shape[1] // 8
    return {
        "qweight": torch.zeros(groups, dtype=torch.int32),
        "qzeros": torch.zeros(groups, dtype=torch.int32),
        "scales": torch.ones(groups, dtype=torch.float16),
    }


QUANTISED = {
    "bitsandbytes": (to_int8, "int8"),
    "gptq": (lambda weight: {**to_int4(weight), "g_idx": torch.zeros(8, dtype=torch.int32)}, "GPTQ"),
    "awq": (to_int4, "AWQ"),
    "nf4": (
        lambda weight: {
            "weight": torch.zeros((weight.numel() // 2, 1), dtype=torch.uint8),
            "weight.absmax": torch.ones(4),
            "weight.quant_map": torch.ones(16),
        },
        "4 bits",
    ),
    "fp8": (lambda weight: {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": torch.ones(())}, "fp8"),
    "fp8 without a scale": (lambda weight: {"weight": weight.to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
    "packed": (lambda weight: {"weight_packed": torch.zeros(4, 4, dtype=torch.int32)}, "weight_packed"),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_b3_quantised_weights_are_refused(folder, family, photos, method):
    edit, word = QUANTISED[method]
    change(folder, family, edit)
    done = use(folder, family, photos)
    assert says_one_line(done, "is a quantised checkpoint")
    assert word in done.stderr


def test_b3_a_configuration_that_names_quantisation(folder, family, photos):
    if family == "timm":
        pytest.skip("timm has no such configuration")
    path = folder / "config.json"
    path.chmod(0o644)
    fields = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "awq", "bits": 4}}
    path.write_text(json.dumps(fields))
    assert says_one_line(use(folder, family, photos), "config.json is a quantised checkpoint (awq)")
    name = f"hf/{folder}" if family == "hf" else folder
    if family != "pixel_sail":
        assert says_one_line(sail("info", "--model", name), "config.json is a quantised checkpoint (awq)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_b4_weights_that_are_no_numbers(folder, family, photos, value):
    def spoil(weight):
        weight[-1, -1] = value
        return {"weight": weight}

    name = change(folder, family, spoil)
    done = use(folder, family, photos)
    assert says_one_line(done, "holds NaN or infinity")
    assert name.rpartition("blocks.")[2].rpartition("layers.")[2] in done.stderr
    assert weights_of(folder).name in done.stderr
    assert not (folder.parent / "out" / "features").exists()


@pytest.mark.parametrize("family", ["sail"], indirect=True)
@pytest.mark.parametrize("kind", ["SailModel", "SailForCausalLM"])
def test_b4_from_pretrained_is_as_strict(folder, family, kind):
    change(folder, family, lambda weight: {"weight": weight * float("nan")})
    with pytest.raises(ValueError, match=r"model\.safetensors: .*up_proj\.weight holds NaN or infinity"):
        getattr(sail_encoder, kind).from_pretrained(folder)


@pytest.mark.parametrize("family", ["sail"], indirect=True)
def test_b3_from_pretrained_is_as_strict(folder, family):
    change(folder, family, to_int8)
    with pytest.raises(ValueError, match=r"is a quantised checkpoint \(int8 of bitsandbytes, by its .*SCB\)"):
        sail_encoder.SailForCausalLM.from_pretrained(folder)
