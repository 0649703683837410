"""Sizes of vision models of transformers, from their small files alone: neither torch nor transformers is imported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from sail_encoder.backbones.spec import BackboneSpec, Channels
from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD
from sail_encoder.images.resizing import MAX_TOKENS, Resize, Size
from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.files import read_fields
from sail_encoder.io.hub import HF, find_checkpoint
from sail_encoder.io.quantised import refuse_quantised_config
from sail_encoder.io.typed import require_type

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALVES = (0.5, 0.5, 0.5)

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
DINOV2 = {**BASE, "patch_size": 14, "mlp_ratio": 4, "layerscale_value": 1.0}


@dataclass(frozen=True)
class Architecture:
    """A type of vision model of transformers.

    Attributes:
        model: Name of its class in transformers.
        final_norm: Name of the module with its final norm.
        defaults: What its configuration class takes where config.json says nothing, and `gated_mlp`, `patch_bias` and
            `proj_bias` where the architecture itself has them other than usual.
        has_class_token: Whether its first token is a class token; registers follow.
        positions: `learned` ones are interpolated to other grids, `fixed` ones cannot be, `computed` ones need not be.
        interpolation: Arguments of its forward pass that ask for interpolation, where it is not done unasked.
        headless: Settings or arguments that leave out its pooling head, `{}` where it has none.
        mean: Mean of pixels where preprocessor_config.json says nothing; likewise `std` and `resample`.
        std: What pixels are divided by.
        resample: Name of Pillow's filter.
    """

    model: str
    final_norm: str
    defaults: dict[str, Any]
    has_class_token: bool = True
    positions: Literal["learned", "fixed", "computed"] = "learned"
    interpolation: dict[str, bool] = field(default_factory=dict)
    headless: dict[str, bool] = field(default_factory=dict)
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    resample: str = "BICUBIC"


_ASKED = {"interpolate_pos_encoding": True}
_MLP = {"intermediate_size": 3072}

ARCHITECTURES = {
    "dinov2": Architecture("Dinov2Model", "layernorm", DINOV2),
    "dinov2_with_registers": Architecture(
        "Dinov2WithRegistersModel", "layernorm", {**DINOV2, "patch_size": 16, "num_register_tokens": 4}
    ),
    "dinov3_vit": Architecture(
        "DINOv3ViTModel",
        "norm",
        {
            **BASE,
            **{"hidden_size": 384, "num_attention_heads": 6, "patch_size": 16, "intermediate_size": 1536},
            **{"key_bias": False, "layerscale_value": 1.0, "num_register_tokens": 0},
        },
        positions="computed",
        resample="BILINEAR",
    ),
    "siglip_vision_model": Architecture(
        "SiglipVisionModel",
        "post_layernorm",
        {**BASE, **_MLP, "patch_size": 16},
        has_class_token=False,
        interpolation=_ASKED,
        headless={"vision_use_head": False},
        mean=HALVES,
        std=HALVES,
    ),
    "clip_vision_model": Architecture(
        "CLIPVisionModel",
        "post_layernorm",
        {**BASE, **_MLP, "patch_size": 32, "patch_bias": False},
        interpolation=_ASKED,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "vit": Architecture(
        "ViTModel",
        "layernorm",
        {**BASE, **_MLP, "patch_size": 16, "qkv_bias": True},
        interpolation=_ASKED,
        headless={"add_pooling_layer": False},
        mean=HALVES,
        std=HALVES,
        resample="BILINEAR",
    ),
    "aimv2_vision_model": Architecture(
        "Aimv2VisionModel",
        "rms_norm",
        {
            **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 2816},
            **{"image_size": 224, "patch_size": 14, "qkv_bias": False, "mlp_bias": False, "is_native": False},
            **{"rms_norm_eps": 1e-5, "gated_mlp": True, "proj_bias": False},
        },
        has_class_token=False,
        positions="fixed",
        headless={"use_head": False},
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "internvl_vision": Architecture(
        "InternVLVisionModel",
        "layernorm",
        {
            **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            **{"image_size": [448, 448], "patch_size": [14, 14], "attention_bias": False, "use_qk_norm": False},
            **{"norm_type": "layer_norm", "layer_scale_init_value": 0.1, "use_mean_pooling": True},
        },
    ),
}
"""Types by `model_type`; sizes of transformers' own configuration classes, means of its image processors."""

WHOLES = {
    "siglip": "siglip_vision_model",
    "clip": "clip_vision_model",
    "aimv2": "aimv2_vision_model",
    "internvl": "internvl_vision",
}
"""Models with a vision tower, described under `vision_config`, by the type of the tower."""

REFUSED = {
    "siglip2": "its NaFlex towers read padded patches; take a SigLIP2 checkpoint of one size, such as "
    "hf/google/siglip2-base-patch16-224",
    "qwen2_5_vl": "its tower reads patches in windows and merges each four, so that single patches have no output",
}
REFUSED["siglip2_vision_model"], REFUSED["qwen2_5_vl_vision"] = REFUSED["siglip2"], REFUSED["qwen2_5_vl"]


def describe_hf(name: str, revision: str | None = None, **_: Any) -> BackboneSpec:
    """Reads what a vision model of transformers is.

    Raises:
        CheckpointError: If there is no such checkpoint, or no vision model that is supported.
    """
    return describe_folder(find_checkpoint(name.removeprefix(HF), revision, weights=False), name)


def describe_folder(folder: Path, name: str) -> BackboneSpec:
    """Reads what the model in a folder is."""
    model_type, written = read_vision_config(folder)
    architecture = ARCHITECTURES[model_type]
    config = {**architecture.defaults, **written}
    _check_sizes(config, folder / "config.json")
    width, patch_size = config["hidden_size"], _side(config["patch_size"])
    try:
        block, other = _block_parameters(config), _other_parameters(config, architecture, patch_size)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a model that can be built ({error!r}); download it again"
        ) from None
    return BackboneSpec(
        name=name,
        family="hf",
        patch_size=patch_size,
        embed_dim=width,
        num_layers=config["num_hidden_layers"],
        block_parameters=block,
        other_parameters=other,
        attention_dim=width,
        extra_tokens=config.get("num_register_tokens", 0) + architecture.has_class_token,
        has_class_token=architecture.has_class_token,
        # An InternVL that pools by a mean keeps its norm in the projector.
        has_final_norm=not config.get("use_mean_pooling", False),
        **_preprocessing(folder, architecture, _side(config["image_size"]), patch_size),
    )


def read_vision_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Type of a vision model, and its part of config.json.

    Raises:
        CheckpointError: If it is no vision model that is supported.
    """
    whole = _read_config(folder)
    model_type = str(whole.get("model_type"))
    if model_type in WHOLES:
        return WHOLES[model_type], whole.get("vision_config") or {}
    if model_type not in ARCHITECTURES:
        reason = REFUSED.get(model_type, f"supported are {', '.join([*ARCHITECTURES, *WHOLES])}")
        raise CheckpointError(f"{folder} is a '{model_type}' model, which {HF} does not load: {reason}")
    return model_type, whole


def is_part_of_whole(folder: Path) -> bool:
    """Tells whether a folder holds a larger model that has the vision model as a part."""
    return _read_config(folder).get("model_type") in WHOLES


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_fields(folder / "config.json")
    if not config:
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint; see sail info --help")
    refuse_quantised_config(config, str(folder / "config.json"))
    return config


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    for size in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
        if not isinstance(value := _first(config[size]), int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path}: {size} cannot be {config[size]!r}; allowed is a whole number from 1")


def has_fixed_positions(model_type: str, config: dict[str, Any]) -> bool:
    """Tells whether a model takes images of its own size alone."""
    return ARCHITECTURES[model_type].positions == "fixed" and not config.get("is_native")


def _preprocessing(folder: Path, architecture: Architecture, image_size: int, patch_size: int) -> dict[str, Any]:
    """Fields of a `BackboneSpec` that the model's own image processor tells.

    The whole image is squashed to the size that the processor crops to, so that the grid covers it; a size that patches
    do not tile is rounded down, as the model itself leaves out what is beyond the last whole patch.
    """
    fields = read_fields(folder / "preprocessor_config.json")
    fields = fields or read_fields(folder / "processor_config.json").get("image_processor", {})
    try:
        height, width = (side // patch_size * patch_size for side in _size(fields, image_size))
        # Written for pixels of 0 to 1, whatever factor the processor brings its pixels to scale with.
        scale = 255 * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 255
        mean, std = fields.get("image_mean", architecture.mean), fields.get("image_std", architecture.std)
        require_type([mean, std], list[tuple[float, float, float]], "image_mean, image_std")
        if not fields.get("do_normalize", True):
            mean, std = (0.0,) * 3, (1.0,) * 3
        default = Image.Resampling[architecture.resample]
        return {
            "resize": Resize((height, width), MAX_TOKENS),
            "resample": Image.Resampling(fields.get("resample", default)).name,
            "image_mean": tuple(value / scale for value in mean),
            "image_std": tuple(value / scale for value in std),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"preprocessor_config.json in {folder} has no size that can be used ({error!r}); download it again"
        ) from None


def _size(fields: dict[str, Any], image_size: int) -> Size:
    """Height and width that an image processor brings images to; a crop counts more than the size before it."""
    crop = fields.get("crop_size") if fields.get("do_center_crop", True) else None
    size = crop or fields.get("size") or image_size
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        return (side, side) if side else (size["height"], size["width"])
    return (size, size)


def _block_parameters(config: dict[str, Any]) -> int:
    """Parameters of one block."""
    width = config["hidden_size"]
    qkv_bias = config.get("qkv_bias", config.get("attention_bias", True))
    biases = sum(config.get(f"{part}_bias", qkv_bias) for part in ("query", "key", "value"))
    attention = 4 * width**2 + width * (biases + config.get("proj_bias", True))
    hidden = config.get("intermediate_size") or width * config["mlp_ratio"]
    if config.get("use_swiglu_ffn"):
        # DINOv2 keeps the parameters of the plain MLP, and rounds up to a multiple of 8.
        hidden = -(-int(hidden * 2 / 3) // 8) * 8
    ways_in = 2 if any(config.get(gated) for gated in ("use_swiglu_ffn", "use_gated_mlp", "gated_mlp")) else 1
    mlp = (ways_in + 1) * width * hidden + config.get("mlp_bias", True) * (ways_in * hidden + width)
    scales = 2 * width if {"layerscale_value", "layer_scale_init_value"} & config.keys() else 0
    return attention + mlp + scales + 2 * _norm_parameters(config) + 2 * width * bool(config.get("use_qk_norm"))


def _other_parameters(config: dict[str, Any], architecture: Architecture, patch_size: int) -> int:
    """Parameters outside the blocks that features need: no mask token, no pooling head."""
    width = config["hidden_size"]
    patches = (_side(config["image_size"]) // patch_size) ** 2
    has_positions = architecture.positions != "computed" and not config.get("is_native")
    tokens = config.get("num_register_tokens", 0) + architecture.has_class_token
    tokens += (patches + architecture.has_class_token) * has_positions
    projection = 3 * patch_size**2 + config.get("patch_bias", True)
    # CLIP norms the embeddings of all tokens, AIMv2 those of the patches.
    norms = 2 if architecture.model in ("CLIPVisionModel", "Aimv2VisionModel") else 1
    norm = norms * _norm_parameters(config)
    if "use_mean_pooling" in config:
        # InternVL's final norm is a layer norm whatever its blocks have, or none.
        norm = 0 if config["use_mean_pooling"] else 2 * width
    return width * (projection + tokens) + norm


def _norm_parameters(config: dict[str, Any]) -> int:
    is_rms = "rms_norm_eps" in config or config.get("norm_type") == "rms_norm"
    return config["hidden_size"] * (1 if is_rms else 2)


def _first(size: Any) -> Any:
    return size[0] if isinstance(size, list) and size else size


def _side(size: Any) -> int:
    """Side of a square that a configuration gives as a number or as a list of two."""
    return int(_first(size))
