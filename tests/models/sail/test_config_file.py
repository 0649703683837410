"""Sizes that are read from config.json alone, against the model itself."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import GOLDEN, small_config
from safetensors.torch import load_file, save_file

from sail_encoder.backbones.descriptions import describe_sail
from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.hub import TINY_FOLDER
from sail_encoder.models.sail.config_file import DEFAULTS
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.modeling_sail import SailModel


def described(folder, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return describe_sail(str(folder))


def counted(config):
    """Parameters of an encoder: of all but the text embedding, and of three rows of that."""
    with torch.device("meta"):
        sizes = {name: tensor.numel() for name, tensor in SailModel(config).state_dict().items()}
    del sizes["embed_tokens.weight"]
    return sum(sizes.values()) + 3 * config.hidden_size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 24},
        {"num_key_value_heads": None},
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"vision_patch_size": 16, "num_hidden_layers": 5},
    ],
)
def test_sizes_are_those_of_the_model(changes, tmp_path):
    config = small_config(**changes)
    spec = described(tmp_path, config.to_dict())
    assert spec.parameters() == counted(config)
    assert (spec.num_layers, spec.embed_dim) == (config.num_hidden_layers, config.hidden_size)
    assert (spec.patch_size, spec.attention_dim) == (config.vision_patch_size, config.attention_width)


def test_what_is_left_out_is_as_in_the_configuration(tmp_path):
    config = SailConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    spec = described(tmp_path, {"model_type": "sail"})
    assert (spec.num_layers, spec.embed_dim, spec.patch_size) == (32, 4096, 14)
    assert spec.parameters() == counted(config)


def test_recorded_and_published_checkpoints(published_tiny):
    tiny = describe_sail("sail-tiny")
    assert describe_sail(str(published_tiny)).parameters() == tiny.parameters()
    golden = describe_sail(str(GOLDEN / "checkpoint"))
    assert golden.num_layers == SailConfig.from_pretrained(GOLDEN / "checkpoint").num_hidden_layers


@pytest.mark.parametrize("form", ["safetensors", "sharded", "pickle"])
def test_a_patch_size_that_only_the_weights_tell(form, tmp_path):
    config = json.loads((TINY_FOLDER / "config.json").read_text())
    del config["vision_patch_size"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    name = "model-00001-of-00001.safetensors" if form == "sharded" else "model.safetensors"
    if form == "sharded":
        index = {"weight_map": dict.fromkeys(load_file(TINY_FOLDER / "model.safetensors"), name)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    if form == "pickle":
        torch.save(load_file(TINY_FOLDER / "model.safetensors"), tmp_path / "pytorch_model.bin")
    else:
        shutil.copy(TINY_FOLDER / "model.safetensors", tmp_path / name)
    assert describe_sail(str(tmp_path)).patch_size == 14
    code = f"""
import sys
from sail_encoder.backbones.descriptions import describe_sail
describe_sail({str(tmp_path)!r})
print("torch" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{form == 'pickle'}\n"


def test_a_plain_mistral_is_not_taken_for_sail(tmp_path):
    tensors = load_file(TINY_FOLDER / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "vis_embed" not in name}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"has no vis_embed\.weight: it is not SAIL"):
        described(tmp_path, {"model_type": "mistral"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 0),
        ("hidden_size", "64"),
        ("intermediate_size", None),
        ("head_dim", 1.5),
        ("num_attention_heads", True),
        ("num_attention_heads", 10_000),
        ("vision_patch_size", -14),
        ("num_key_value_heads", "2"),
    ],
)
def test_sizes_that_cannot_be(field, value, tmp_path):
    named = "head_dim" if value == 10_000 else field
    with pytest.raises(CheckpointError, match=rf"config\.json: {named} cannot be "):
        described(tmp_path, {**json.loads((TINY_FOLDER / "config.json").read_text()), "head_dim": None, field: value})


def test_sizes_of_images_that_cannot_be(tmp_path):
    for text in (
        '{"size": {"height": 14}}',
        '{"size": [14, 14]}',
        '{"max_tokens": 0}',
        '{"max_tokens": "many"}',
        "[",
        "[]",
    ):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
            described(tmp_path, {"model_type": "sail"})
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 28, "width": 42}}')
    assert described(tmp_path, {"model_type": "sail"}).resize.fixed == (28, 42)
