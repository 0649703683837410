"""The encoder path of SAIL: packed images through the transformer, without text, mask or cache."""

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.utils.generic import can_return_tuple

from sail_encoder.sail.blocks import SailAttention, SailDecoderLayer, SailRotaryEmbedding
from sail_encoder.sail.cached_positions import remember_offset
from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.prefixes import ImagePrefixes
from sail_encoder.sail.published import missing_patch_weight


class SailPreTrainedModel(PreTrainedModel):
    """What the SAIL models share: the configuration, weight initialisation, and what transformers may do with them."""

    config: SailConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SailDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    # FlashAttention's kernels know causal or full, not a full prefix before causal text.
    _supports_flash_attn = False
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SailDecoderLayer, "attentions": SailAttention}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint in the native or the published format; options as in transformers.

        Raises:
            CheckpointError: If there is no patch embedding, without which the model is blind.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if any(key.endswith("vis_embed.weight") for key in info["missing_keys"]):
            raise missing_patch_weight(pretrained_model_name_or_path)
        return (model, info) if output_loading_info else model


class SailEncoder(SailPreTrainedModel):
    """The weights of SAIL without the language head, and what they do with images alone."""

    def __init__(self, config: SailConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vis_embed = nn.Linear(config.patch_dim, config.hidden_size, bias=False)
        self.layers = nn.ModuleList(SailDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = SailRotaryEmbedding(config)
        self.post_init()

    def encode_images(
        self, pixel_values: Tensor, image_grid_hw: Tensor, layers: Collection[int], norm: bool = True
    ) -> dict[int, Tensor]:
        """Runs image-only prefixes up to the deepest requested layer.

        Every image attends to itself in full and to no other image, whatever else is in the batch.

        Args:
            pixel_values: [total patches, 3 * patch_size**2], normalised, channel first within a patch.
            image_grid_hw: [images, 2], rows and columns of patches.
            layers: Blocks whose output to return, from 0 to `num_hidden_layers - 1`.
            norm: Whether to apply the model's final norm to each of them.

        Returns:
            For each layer the hidden states of the patches, [total patches, hidden_size].

        Raises:
            ValueError: If the grids do not add up to the patches.
        """
        prefixes = ImagePrefixes.of(pixel_values, image_grid_hw, self.config)
        stream = self.residual_stream(pixel_values, prefixes)
        next(stream)
        states = {}
        for index in range(max(layers) + 1):
            hidden = next(stream)
            if index in layers:
                patches = hidden[prefixes.patch_index]
                states[index] = self.norm(patches) if norm else patches
        return states

    def encode_prefix(self, pixel_values: Tensor, image_grid_hw: Tensor) -> DynamicCache:
        """Runs one image by the encoder path and keeps its keys and values, for text to continue from.

        Args:
            pixel_values: [patches, 3 * patch_size**2] of the image.
            image_grid_hw: [1, 2], its rows and columns of patches.

        Returns:
            A cache of `rows * columns + 2` tokens.
        """
        prefixes = ImagePrefixes.of(pixel_values, image_grid_hw, self.config)
        cache = DynamicCache(config=self.config)
        for _ in self.residual_stream(pixel_values, prefixes, cache):
            pass
        remember_offset(cache, prefixes.position_ids[:, None])
        return cache

    def residual_stream(
        self, pixel_values: Tensor, prefixes: ImagePrefixes, past_key_values: Cache | None = None
    ) -> Iterator[Tensor]:
        """Runs packed images block by block, as far as the result is read.

        Args:
            pixel_values: [total patches, 3 * patch_size**2].
            prefixes: Where they lie.
            past_key_values: Cache to fill, where there is one image.

        Yields:
            The embedding, then the output of each block in turn, [tokens, hidden_size].
        """
        hidden = self._add_pixels(self.embed_tokens(prefixes.input_ids), pixel_values, prefixes.patch_index)
        yield hidden
        rotary = self.rotary_emb(hidden, prefixes.position_ids)
        for layer in self.layers:
            hidden = layer(
                hidden[None],
                past_key_values=past_key_values,
                position_embeddings=rotary,
                segments=prefixes.segments,
            )[0]
            yield hidden

    def _add_pixels(self, tokens: Tensor, pixel_values: Tensor, patch_index: Tensor) -> Tensor:
        """Token embeddings [tokens, hidden_size] with the mapped pixels added where the patches are."""
        pixels = self.vis_embed(pixel_values.to(tokens.dtype))
        return tokens.index_add(0, patch_index, pixels.to(tokens.dtype))

    @can_return_tuple
    def _forward_images(
        self, pixel_values: Tensor, image_grid_hw: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPast:
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        prefixes = ImagePrefixes.of(pixel_values, image_grid_hw, self.config)
        states = []
        for hidden in self.residual_stream(pixel_values, prefixes):
            if output_hidden_states:
                states.append(hidden[prefixes.patch_index])
        last = self.norm(hidden[prefixes.patch_index])
        hidden_states = (*states[:-1], last) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=hidden_states)
