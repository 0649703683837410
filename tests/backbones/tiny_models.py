"""Vision models of transformers that run in milliseconds, with random weights, as folders in the published form."""

import json

import torch
import transformers

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
MLP = {"intermediate_size": 48}
MODELS = {
    "dinov2": ("Dinov2", {"mlp_ratio": 2}),
    "dinov2_giant": ("Dinov2", {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 4}),
    "dinov3_vit": ("DINOv3ViT", {**MLP, "num_register_tokens": 4}),
    "dinov3_gated": ("DINOv3ViT", {**MLP, "num_register_tokens": 4, "use_gated_mlp": True}),
    "siglip": ("SiglipVision", MLP),
    "clip": ("CLIPVision", MLP),
    "vit": ("ViT", MLP),
    "aimv2": ("Aimv2Vision", MLP),
    "aimv2_native": ("Aimv2Vision", {**MLP, "is_native": True}),
    "internvl": ("InternVLVision", {**MLP, "image_size": [56, 56], "patch_size": [14, 14]}),
    "internvl_6b": (
        "InternVLVision",
        {
            **{**MLP, "image_size": [56, 56], "patch_size": [14, 14], "norm_type": "rms_norm", "use_qk_norm": True},
            **{"attention_bias": True, "use_mean_pooling": False},
        },
    ),
}
"""Class in transformers, without Model or Config at its end, and sizes beside those that all share."""

WHOLES = {
    "siglip": ("SiglipModel", "SiglipConfig"),
    "clip": ("CLIPModel", "CLIPConfig"),
    "aimv2": ("Aimv2Model", "Aimv2Config"),
    "internvl": ("InternVLForConditionalGeneration", "InternVLConfig"),
}
"""Models with a text tower, by the name of their vision model in `MODELS`."""

TEXT = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40},
    **{"projection_dim": 32, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2},
}


def build(name):
    """A model of `MODELS` whose weights are all random, also those that begin as zeros or ones."""
    kind, sizes = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    model = getattr(transformers, f"{kind}Model")(config)
    return shake(model)


def build_whole(name):
    """A model of `WHOLES`."""
    kind, config_kind = WHOLES[name]
    text = {**TEXT, "model_type": "qwen2", "num_key_value_heads": 2} if name == "internvl" else TEXT
    vision = {**SIZES, **MODELS[name][1]}
    config = getattr(transformers, config_kind)(
        vision_config=vision, text_config=text, projection_dim=32, image_token_id=3, downsample_ratio=0.5
    )
    return shake(getattr(transformers, kind)(config))


def shake(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(model, folder, **preprocessing):
    """Writes a model, and beside it what its image processor does, where there is some."""
    model.save_pretrained(folder)
    if preprocessing:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return f"hf/{folder}"
