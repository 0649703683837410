"""The published config.json, what is made of it, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from sail_vl_golden import GOLDEN
from transformers import Qwen2Config, Qwen3Config

from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.models.sail_vl.checkpoint import expected_shapes, read_config
from sail_encoder.models.sail_vl.configuration_sail_vl import InternViTConfig, SailViTConfig, SailVLConfig
from sail_encoder.models.sail_vl.published import hub_name

AIMV2_HUGE = {
    **{"model_type": "aimv2", "architectures": ["AIMv2Model"], "hidden_size": 1536, "intermediate_size": 4096},
    **{"num_hidden_layers": 24, "num_attention_heads": 12, "patch_size": 14, "image_size": 448, "num_channels": 3},
    **{"rms_norm_eps": 1e-5, "qkv_bias": False, "use_bias": False},
}
INTERNVIT_300M = {
    **{"model_type": "intern_vit_6b", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    **{"num_attention_heads": 16, "patch_size": 14, "image_size": 448, "layer_norm_eps": 1e-6, "qkv_bias": True},
    **{"qk_normalization": False, "norm_type": "layer_norm", "hidden_act": "gelu"},
}
QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1e6}
QWEN2_7B = {
    **{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, **QWEN},
    **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}
QWEN2_1B5 = {
    **{"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, **QWEN},
    **{"num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": False},
}
QWEN3_1B7 = {
    **{"model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, **QWEN},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
    "tie_word_embeddings": True,
}


def published(vision, text, **changes):
    return {
        **{"model_type": "internvl_chat", "template": "sailvl-chat", "select_layer": -1, "ps_version": "v2"},
        **{"downsample_ratio": 0.5, "force_image_size": 448, "torch_dtype": "bfloat16"},
        **{"vision_config": vision, "llm_config": text, **changes},
    }


@pytest.fixture
def write_config(tmp_path):
    def write(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (published(AIMV2_HUGE, QWEN2_7B), 16_665_065_472 // 2),
        (published({**AIMV2_HUGE, "model_type": "sailvit"}, QWEN3_1B7, model_type="sailvl"), 5_461_130_240 // 2),
        (published(INTERNVIT_300M, QWEN2_1B5), 2_089_762_304),
    ],
    ids=["SAIL-VL-1d6-8B", "SAIL-VL2-2B", "SAIL-VL-2B"],
)
def test_sizes_of_published_models(config, parameters, write_config):
    """Without weights beside it: half the bytes of the published files, which are in bfloat16."""
    read = read_config(write_config(config))
    assert sum(torch.Size(shape).numel() for shape in expected_shapes(read).values()) == parameters
    assert read.dtype == torch.bfloat16
    assert read.tokens_per_tile == 256


def test_a_published_file_in_our_terms(write_config):
    folder = write_config(published(INTERNVIT_300M, QWEN2_1B5, force_image_size=224))
    config = SailVLConfig.from_pretrained(folder)
    assert isinstance(config.vision_config, InternViTConfig)
    assert isinstance(config.text_config, Qwen2Config)
    assert config.text_config.rope_parameters == {"rope_theta": 1e6, "rope_type": "default"}
    assert config.text_config._attn_implementation != "flash_attention_2"
    assert (config.tile_size, config.tokens_per_tile) == (224, 64)
    assert config.image_token_id is None
    with pytest.raises(UserError, match="pass image_token_id="):
        _ = config.required_image_token_id
    assert SailVLConfig.from_pretrained(folder, image_token_id=7).required_image_token_id == 7


def test_ids_come_from_the_tokenizer(copy_of, edit_json):
    """Whatever llm_config says: the published `chat` stops at `<|im_end|>`."""
    folder = copy_of("sail_vl2")
    edit_json(folder / "config.json", llm_config__eos_token_id=5)
    for missing in ("added_tokens.json", "tokenizer_config.json"):
        config = SailVLConfig.from_pretrained(folder)
        assert (config.image_token_id, config.text_config.eos_token_id) == (300, 274)
        (folder / missing).unlink()
    assert SailVLConfig.from_pretrained(folder).image_token_id == 300


def test_round_trip(tmp_path):
    config = SailVLConfig.from_pretrained(GOLDEN / "sail_vl2" / "checkpoint")
    config.save_pretrained(tmp_path)
    again = SailVLConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.vision_config, SailViTConfig)
    assert isinstance(again.text_config, Qwen3Config)
    assert again.text_config.head_dim == 32
    assert "auto_map" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, r"describes a 'llava', not a SAIL-VL"),
        ({"template": "internvl2_5"}, "template 'internvl2_5' is unknown; known are sailvl-chat, univl-chat"),
        ({"vision_config": {**AIMV2_HUGE, "model_type": "siglip"}}, "the tower 'siglip' is unknown; known are sailvit"),
        ({"vision_config": {**INTERNVIT_300M, "qk_normalization": True}}, "qk_normalization True is not supported"),
        ({"vision_config": {**INTERNVIT_300M, "norm_type": "rms_norm"}}, "norm_type 'rms_norm' is not supported"),
        ({"vision_config": {"model_type": "aimv2"}}, "lacks hidden_size, intermediate_size"),
        ({"vision_config": {**AIMV2_HUGE, "hidden_size": 10**9}}, "hidden_size is 1000000000; allowed is a whole num"),
        ({"vision_config": {**AIMV2_HUGE, "num_hidden_layers": -1}}, "num_hidden_layers is -1"),
        ({"vision_config": {**AIMV2_HUGE, "num_attention_heads": 7}}, "1536 cannot be split among 7 attention heads"),
        ({"vision_config": {**AIMV2_HUGE, "image_size": 450}}, "image_size 450 is not a multiple of patch_size 14"),
        ({"vision_config": None}, "has no vision_config"),
        ({"llm_config": {**QWEN2_7B, "model_type": "internlm2"}}, "the language model 'internlm2' is unknown"),
        ({"llm_config": {**QWEN2_7B, "num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000"),
        ({"llm_config": {**QWEN2_7B, "vocab_size": "many"}}, "vocab_size is 'many'"),
        ({"select_layer": 3}, "select_layer is 3; this tower has -24 to -1"),
        ({"select_layer": -25}, "select_layer is -25"),
        ({"ps_version": "v3"}, "ps_version is 'v3'; allowed are v1 and v2"),
        ({"downsample_ratio": 0.4}, "downsample_ratio is 0.4"),
        ({"force_image_size": 462}, "tile_size 462 is not a multiple of the 28 pixels of a projected token"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            r"is a quantised checkpoint \(bitsandbytes\)",
        ),
    ],
)
def test_what_is_refused(changes, message, write_config):
    config = {key: value for key, value in published(AIMV2_HUGE, QWEN2_7B, **changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(write_config(config))
    assert "\n" not in str(error.value)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="download it again"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BytedanceDouyinContent/SAIL-VL-1.5-2B", "BytedanceDouyinContent/SAIL-VL-1d5-2B"),
        ("SAIL-VL-1.6-8B", "BytedanceDouyinContent/SAIL-VL-1d6-8B"),
        ("SAIL-VL-1d5-8B", "BytedanceDouyinContent/SAIL-VL-1d5-8B"),
        ("SAIL-VL-1.7-Thinking-2B-2507", "BytedanceDouyinContent/SAIL-VL-1d7-Thinking-2B-2507"),
        ("SAIL-VL2-8B-Thinking", "BytedanceDouyinContent/SAIL-VL2-8B-Thinking"),
        ("SAILViT-Huge-600M-448px", "BytedanceDouyinContent/SAILViT-Huge-600M-448px"),
        ("somebody/SAIL-VL-1.5-2B", "somebody/SAIL-VL-1.5-2B"),
        ("ByteDance-Seed/SAIL-7B", "ByteDance-Seed/SAIL-7B"),
    ],
)
def test_spellings_of_names(name, expected):
    assert hub_name(name) == expected


def test_a_folder_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SAIL-VL-2B").mkdir()
    assert hub_name("SAIL-VL-2B") == "SAIL-VL-2B"


@pytest.mark.parametrize("name", ["SAIL-VL-2B-int8", "BytedanceDouyinContent/SAIL-VL-1.6-8B-Int4", "SAIL-VL2-8B-AWQ"])
def test_quantised_names_are_refused(name):
    with pytest.raises(CheckpointError, match=f"^{name} is a quantised checkpoint"):
        hub_name(name)


def test_a_published_file_is_read_without_torch(write_config):
    folder = write_config(published(AIMV2_HUGE, QWEN2_7B))
    script = (
        "import sys; from pathlib import Path; from sail_encoder.models.sail_vl.published import *;"
        f"folder = Path({str(folder)!r}); fields = complete_config(read_json(folder / 'config.json'), folder);"
        "print(fields['tile_size']);"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["448", "set()"]
