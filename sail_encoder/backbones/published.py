"""Published models by name: sizes that are known without their files, so that they are described offline.

A folder, or another revision than the newest, is described from its own files. Weights are always checked against the
config.json beside them, so that an error here cannot reach a feature.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_encoder.models.sail_vl.published import ORGANISATION, hub_name

Sizes = Mapping[str, Any]

_MISTRAL_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vision_patch_size": 14,
}
_SAILVIT_HUGE = {
    "model_type": "sailvit",
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": False,
    "use_bias": False,
}
_INTERNVIT_300M = {
    "model_type": "internvit",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "qkv_bias": True,
}


def _language_model(kind: str, hidden: int, intermediate: int, layers: int, heads: int, vocab: int) -> Sizes:
    """Sizes of a Qwen; its query heads have 128 channels."""
    kv_heads = {"qwen2": {12: 2, 28: 4}, "qwen3": {16: 8, 32: 8}}[kind][heads]
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "attention_dim": heads * 128,
        "key_value_dim": kv_heads * 128,
        "vocab_size": vocab,
    }


_QWEN2_1_5B = _language_model("qwen2", 1536, 8960, 28, 12, 151936)
_QWEN2_7B = _language_model("qwen2", 3584, 18944, 28, 28, 152064)
_QWEN3_1_7B = _language_model("qwen3", 2048, 6144, 28, 16, 151936)
_QWEN3_8B = _language_model("qwen3", 4096, 12288, 36, 32, 151936)

SAIL: dict[str, Sizes] = {"ByteDance-Seed/SAIL-7B": _MISTRAL_7B}
"""Sizes of SAIL models, as `models.sail.config_file.read_sizes` gives them."""

SAIL_VL: dict[str, tuple[Sizes, Sizes | None]] = {
    f"{ORGANISATION}/{name}": (tower, language_model)
    for name, tower, language_model in (
        ("SAIL-VL-2B", _INTERNVIT_300M, _QWEN2_1_5B),
        ("SAIL-VL-8B", _INTERNVIT_300M, _QWEN2_7B),
        ("SAIL-VL-1d5-2B", _SAILVIT_HUGE, _QWEN2_1_5B),
        ("SAIL-VL-1d5-8B", _INTERNVIT_300M, _QWEN2_7B),
        ("SAIL-VL-1d6-8B", _SAILVIT_HUGE, _QWEN2_7B),
        ("SAIL-VL2-2B", _SAILVIT_HUGE, _QWEN3_1_7B),
        ("SAIL-VL2-2B-Thinking", _SAILVIT_HUGE, _QWEN3_1_7B),
        ("SAIL-VL2-8B", _SAILVIT_HUGE, _QWEN3_8B),
        ("SAIL-VL2-8B-Thinking", _SAILVIT_HUGE, _QWEN3_8B),
        ("SAILViT-Huge-600M-448px", _SAILVIT_HUGE, None),
    )
}
"""Tower and language model of SAIL-VL models; a SAILViT alone has no language model."""

LICENCES = {"ByteDance-Seed/SAIL-7B": "Apache-2.0"}
"""Licences of weights, as their cards name them; those of others are to be looked up there."""


def published_name(name: str, revision: str | None = None) -> str | None:
    """Name of a published model in these tables, None where its own files are to be read."""
    if revision is not None or Path(name).expanduser().exists():
        return None
    spelled = hub_name(name)
    return spelled if spelled in SAIL or spelled in SAIL_VL else None


def whole_settings(language_model: Sizes) -> dict[str, Any]:
    """Settings of a published SAIL-VL beside its tower, the same for all of them."""
    return {"tile_size": 448, "select_layer": -1, "downsample_ratio": 0.5, "text_config": dict(language_model)}


def language_parameters(sizes: Sizes) -> int:
    """Parameters of a Qwen with a language head of its own."""
    width, hidden, attention = sizes["hidden_size"], sizes["intermediate_size"], sizes["attention_dim"]
    projections = 2 * width * attention + 2 * width * sizes["key_value_dim"] + 3 * width * hidden
    # Qwen2 has biases of query, key and value; Qwen3 norms of query and key instead.
    small = attention + 2 * sizes["key_value_dim"] if sizes["model_type"] == "qwen2" else 2 * 128
    per_layer = projections + small + 2 * width
    return int(sizes["num_hidden_layers"] * per_layer + width + 2 * sizes["vocab_size"] * width)
