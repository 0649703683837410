"""Configuration of SAIL: a Mistral transformer, the patch size and the ids of the vision tokens."""

from os import PathLike
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from sail_encoder.auto import register_models
from sail_encoder.io.errors import UserError
from sail_encoder.models.sail.config_file import find_described, read_config


# Not a subclass of MistralConfig: the Auto classes import this module while transformers itself is being imported, and
# then only its base modules can be.
@strict
class SailConfig(BackboneConfigMixin, PreTrainedConfig):
    """Sizes and token ids of a SAIL model (arXiv 2504.10462).

    Defaults are those of the published code, which fill what a published config.json leaves out.

    Args:
        vocab_size: Tokens of the vocabulary.
        hidden_size: Channels of the residual stream.
        intermediate_size: Channels inside the feed-forward blocks.
        num_hidden_layers: Blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; the number of query heads where None.
        head_dim: Channels of a head; `hidden_size / num_attention_heads` where None.
        hidden_act: Activation of the feed-forward blocks.
        max_position_embeddings: Longest sequence that the model is meant for.
        initializer_range: Standard deviation of random weights.
        rms_norm_eps: Added to the variance in the norms.
        use_cache: Whether the language path returns a cache by default.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of `<s>`.
        eos_token_id: Id of `</s>`.
        tie_word_embeddings: Whether the language head shares the embedding's weights.
        rope_parameters: `rope_theta`, and `rope_type`, which is always "default".
        sliding_window: How far back text sees on the language path, None for all the way; images always see
            themselves in full.
        attention_bias: Whether the projections to query, key and value have a bias, as in SAILs that are made of Qwen.
        attention_dropout: Dropout of attention weights while training.
        vision_patch_size: Side of a square patch in pixels; SAIL-7B has 14.
        vision_start_token_id: Id of `<vision>`, which opens an image.
        image_token_id: Id of `<vpatch>`, which stands for one patch.
        vision_end_token_id: Id of `</vision>`, which closes an image.
        unused_vision_token_ids: Ids of further vision tokens of the vocabulary, which the released models do not use.
        apply_layernorm: Whether `SailBackbone` applies the final norm to each feature map.
        reshape_hidden_states: Whether `SailBackbone` returns maps [batch, C, nh, nw]; otherwise sequences
            [batch, 1 + nh * nw, C] that begin with `<vision>`.
        out_features: Names of the stages that `SailBackbone` returns, of `stem`, `stage1`, ...; the last by default.
        out_indices: The same stages by number; 0 is the embedding, i is the output of block i - 1.
    """

    model_type = "sail"
    attribute_map = {"patch_size": "vision_patch_size"}
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = 4096
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    vision_patch_size: int = 14
    vision_start_token_id: int | None = None
    image_token_id: int | None = None
    vision_end_token_id: int | None = None
    unused_vision_token_ids: list[int] | None = None
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        stages = {key: kwargs.pop(key, None) for key in ("out_features", "out_indices")}
        self.set_output_features_output_indices(**stages)
        super().__post_init__(**kwargs)
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type != "default":
            raise ValueError(f"rope_type '{rope_type}' is not SAIL's; only 'default' is")
        register_models()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads config.json, completed where it is a published one; `from_pretrained` calls it."""
        raw, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if raw.get("model_type") == "mistral":
            raw = read_config(find_described(str(pretrained_model_name_or_path), kwargs.get("revision")))
        return raw, rest

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps of `SailBackbone`: the embedding, then the output of each block."""
        return ["stem", *(f"stage{block + 1}" for block in range(self.num_hidden_layers))]

    @property
    def all_vision_token_ids(self) -> list[int]:
        """Ids of all vision tokens, which stand for images and have no place in an answer."""
        used = (self.vision_start_token_id, self.image_token_id, self.vision_end_token_id)
        return [token_id for token_id in (*used, *(self.unused_vision_token_ids or ())) if token_id is not None]

    @property
    def rotary_base(self) -> float:
        """Base of the rotary frequencies."""
        return float((self.rope_parameters or {})["rope_theta"])

    @property
    def attention_width(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * (self.head_dim or 0)

    @property
    def key_value_width(self) -> int:
        """Channels of all key heads together, and of all value heads."""
        return (self.num_key_value_heads or 0) * (self.head_dim or 0)

    @property
    def patch_dim(self) -> int:
        """Length of a flattened RGB patch."""
        return 3 * self.vision_patch_size**2

    @property
    def vision_token_ids(self) -> tuple[int, int, int]:
        """Ids of `<vision>`, `<vpatch>` and `</vision>`.

        Raises:
            UserError: If one of them is not set.
        """
        start, patch, end = self.vision_start_token_id, self.image_token_id, self.vision_end_token_id
        if start is None or patch is None or end is None:
            raise UserError(
                "the vision token ids are unknown; pass vision_start_token_id=, image_token_id= and "
                "vision_end_token_id=, or keep tokenizer.json beside the weights"
            )
        return start, patch, end
