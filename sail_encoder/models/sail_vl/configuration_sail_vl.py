"""Configurations of the two vision towers and of the whole SAIL-VL."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from sail_encoder.auto import register_sail_vl_models
from sail_encoder.io.errors import UserError
from sail_encoder.models.sail_vl.published import complete_config, complete_tower, find_described, hub_name

LARGEST = {
    "vocab_size": 2**22,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10,
    "head_dim": 2**12,
    "image_size": 2**14,
    "tile_size": 2**14,
    "patch_size": 2**10,
}
"""Sizes beyond which a config.json is damaged or hostile; the largest published models stay far below."""


def check_sizes(fields: Mapping[str, Any]) -> None:
    """Makes sure that sizes are such that a model can be built, before anything is.

    Raises:
        UserError: If one is no whole number from 1 to its limit in `LARGEST`, or the heads do not divide the width.
    """
    for name, largest in LARGEST.items():
        value = fields.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise UserError(f"{name} is {value!r}; allowed is a whole number from 1 to {largest}")
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if hidden and heads and not fields.get("head_dim") and hidden % heads:
        raise UserError(f"hidden_size {hidden} cannot be split among {heads} attention heads")


class _TowerConfig(PreTrainedConfig):
    """Common part of the towers' configurations, which are read from a tower's folder or from a SAIL-VL's."""

    base_config_key = "vision_config"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_sizes(vars(self))
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        register_sail_vl_models()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads config.json, of a tower alone or of a SAIL-VL; `from_pretrained` calls it."""
        name = hub_name(str(pretrained_model_name_or_path))
        raw, rest = super().get_config_dict(name, **kwargs)
        fields = complete_tower(raw.get("vision_config", raw), name)
        if fields["model_type"] != cls.model_type:
            raise UserError(f"the tower of {name} is a '{fields['model_type']}', not a '{cls.model_type}'")
        return fields, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from the fields of a config.json; the Auto classes call it with a published one."""
        return super().from_dict(complete_tower(config_dict, "config.json"), **kwargs)


@strict
class SailViTConfig(_TowerConfig):
    """Sizes of a SAILViT, which is an AIMv2 (arXiv 2411.14402) under another name; defaults are those published.

    Args:
        hidden_size: Channels.
        intermediate_size: Channels inside the feed-forward blocks.
        num_hidden_layers: Blocks.
        num_attention_heads: Heads.
        image_size: Side in pixels of the images that the position embeddings are for; others are interpolated.
        patch_size: Side of a patch in pixels.
        rms_norm_eps: Added to the mean square in the norms.
        qkv_bias: Whether the projections to query, key and value have a bias.
        use_bias: Whether the other linear layers of the blocks have one.
        initializer_range: Standard deviation of random weights.
    """

    model_type = "sailvit"

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    image_size: int = 448
    patch_size: int = 14
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    use_bias: bool = False
    initializer_range: float = 0.02


@strict
class InternViTConfig(_TowerConfig):
    """Sizes of an InternViT (arXiv 2312.14238); defaults are those of InternViT-300M-448px.

    Args:
        hidden_size: Channels.
        intermediate_size: Channels inside the feed-forward blocks.
        num_hidden_layers: Blocks.
        num_attention_heads: Heads.
        image_size: Side in pixels of the images that the position embeddings are for; others are interpolated.
        patch_size: Side of a patch in pixels.
        layer_norm_eps: Added to the variance in the norms.
        qkv_bias: Whether the projections to query, key and value have a bias.
        initializer_factor: Start of the layer scales.
        initializer_range: Standard deviation of random weights.
    """

    model_type = "internvit"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    initializer_factor: float = 1.0
    initializer_range: float = 0.02


TOWER_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    config.model_type: config for config in (SailViTConfig, InternViTConfig)
}


@strict
class SailVLConfig(PreTrainedConfig):
    """Configuration of a SAIL-VL (arXiv 2501.05952) or SAIL-VL2 (arXiv 2509.14033).

    Args:
        vision_config: Configuration of the tower, a `SailViTConfig` or `InternViTConfig`, or its fields with their
            `model_type`.
        text_config: Configuration of the language model, a `Qwen2Config` or `Qwen3Config`, or its fields.
        image_token_id: Id of `<IMG_CONTEXT>`, which stands for one projected token of an image.
        select_layer: Which output of the tower is projected, counted from the end: -1 is the last with the final norm,
            -2 the output of the last block but one, without.
        ps_version: How neighbouring patches are gathered: "v2" keeps the rows and columns of an image, "v1" swaps them.
        downsample_ratio: Side of the projected grid over that of the grid of patches.
        tile_size: Side of a tile in pixels.
        tie_word_embeddings: Follows `text_config`. No published checkpoint ties them, whatever its config.json says.
    """

    model_type = "sail_vl"
    sub_configs = {"vision_config": PreTrainedConfig, "text_config": PreTrainedConfig}
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int | None = None
    select_layer: int = -1
    ps_version: str = "v2"
    downsample_ratio: float = 0.5
    tile_size: int = 448
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _build_config(self.vision_config, TOWER_CONFIGS, "sailvit")
        self.text_config = _build_config(self.text_config, _text_configs(), "qwen2")
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)
        self._check()
        register_sail_vl_models()

    def _check(self) -> None:
        check_sizes(vars(self))
        depth = self.vision_config.num_hidden_layers
        if not -depth <= self.select_layer <= -1:
            raise UserError(f"select_layer is {self.select_layer}; this tower has -{depth} to -1, counted from the end")
        if self.ps_version not in ("v1", "v2"):
            raise UserError(f"ps_version is '{self.ps_version}'; allowed are v1 and v2")
        if not 0 < self.downsample_ratio <= 1 or (1 / self.downsample_ratio) % 1:
            raise UserError(f"downsample_ratio is {self.downsample_ratio}; allowed is one over a whole number")
        pixels = self.vision_config.patch_size * self.downsample_factor
        if self.tile_size % pixels:
            raise UserError(f"tile_size {self.tile_size} is not a multiple of the {pixels} pixels of a projected token")

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads config.json, completed where it is a published one; `from_pretrained` calls it."""
        name = hub_name(str(pretrained_model_name_or_path))
        raw, rest = super().get_config_dict(name, **kwargs)
        if raw.get("model_type") != cls.model_type:
            raw = complete_config(raw, find_described(name, kwargs.get("revision")))
        return raw, rest

    @property
    def downsample_factor(self) -> int:
        """Side of the square of patches that becomes one projected token."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        """Projected tokens of a tile."""
        return (self.tile_size // (self.vision_config.patch_size * self.downsample_factor)) ** 2

    @property
    def required_image_token_id(self) -> int:
        """Id of `<IMG_CONTEXT>`.

        Raises:
            UserError: If it is not set.
        """
        if self.image_token_id is None:
            raise UserError(
                "the id of <IMG_CONTEXT> is unknown; pass image_token_id=, or keep the tokenizer's files beside the "
                "weights"
            )
        return self.image_token_id


def _text_configs() -> dict[str, type[PreTrainedConfig]]:
    # Imported late: this module is loaded while transformers itself is.
    from transformers import Qwen2Config, Qwen3Config

    return {"qwen2": Qwen2Config, "qwen3": Qwen3Config}


def _build_config(given: Any, classes: Mapping[str, type[PreTrainedConfig]], default: str) -> Any:
    """Configuration of a part: as given, or of the class that the `model_type` of its fields names."""
    if isinstance(given, PreTrainedConfig):
        return given
    fields = dict(given or {})
    kind = fields.pop("model_type", default)
    if kind not in classes:
        raise UserError(f"'{kind}' is no part of a SAIL-VL; known are {', '.join(classes)}")
    check_sizes(fields)
    return classes[kind](**fields)
