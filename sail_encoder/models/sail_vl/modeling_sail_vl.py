"""SAIL-VL and SAIL-VL2: images as tiles through a tower and a projector into a Qwen language model.

A tile of 448 x 448 pixels is 32 x 32 patches for the tower. Pixel shuffle puts each 2 x 2 of them side by side in
their channels, a network of two layers brings these 256 vectors to the width of the language model, and there they
stand in place of `<IMG_CONTEXT>` tokens between `<img>` and `</img>`. Modules carry the names of the published
checkpoints: `vision_model`, `mlp1`, `language_model`.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import GenerationMixin, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from sail_encoder.io.errors import UserError
from sail_encoder.models.sail_vl.configuration_sail_vl import SailVLConfig
from sail_encoder.models.sail_vl.modeling_sailvit import Grid, VisionTower, build_tower
from sail_encoder.models.sail_vl.pretrained import PublishedPreTrainedModel

LANGUAGE_MODELS = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}


def pixel_shuffle(patches: Tensor, grid: Grid, factor: int, version: str = "v2") -> Tensor:
    """Puts each square of neighbouring patches side by side in their channels.

    Args:
        patches: [tiles, rows * columns, C], row by row.
        grid: (rows, columns).
        factor: Side of a square in patches.
        version: "v2" goes on row by row; "v1", of the first checkpoints, column by column.

    Returns:
        [tiles, rows * columns / factor**2, factor**2 * C].

    Raises:
        UserError: If squares do not tile the grid.
    """
    if grid[0] % factor or grid[1] % factor:
        raise UserError(f"a grid of {grid[0]}x{grid[1]} patches cannot be gathered by {factor}x{factor}")
    order = "(r k)" if version == "v2" else "(k r)"
    pattern = f"t (r i k j) c -> t {order} (i j c)"
    return rearrange(patches, pattern, r=grid[0] // factor, i=factor, j=factor)


class SailVLPreTrainedModel(PublishedPreTrainedModel):
    """Tower and projector of a SAIL-VL, from tiles to the embeddings that the language model receives."""

    config: SailVLConfig
    config_class = SailVLConfig
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    vision_model: VisionTower
    mlp1: nn.Sequential

    def _build_vision(self, config: SailVLConfig) -> None:
        gathered = config.vision_config.hidden_size * config.downsample_factor**2
        width = config.text_config.hidden_size
        self.vision_model = build_tower(config.vision_config)
        # Loaded alone, a tower passes over the rest of a whole model's tensors; as a part it must not hide them.
        self.vision_model._keys_to_ignore_on_load_unexpected = []
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(gathered), nn.Linear(gathered, width), nn.GELU(), nn.Linear(width, width)
        )

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encodes tiles for the language model.

        Args:
            pixel_values: [tiles, 3, height, width], normalised; both sides a multiple of the pixels of a projected
                token (28 for the published models).
            kwargs: `output_hidden_states`, `output_attentions` of the tower, `return_dict`.

        Returns:
            `pooler_output` [tiles, tokens, D] is what the language model receives, `last_hidden_state`
            [tiles, rows * columns, C] the selected output of the tower, without class token.
        """
        config, tower = self.config, self.vision_model
        encoded = tower(pixel_values, select_layer=config.select_layer, **{**kwargs, "return_dict": True})
        states = encoded.last_hidden_state[:, tower.num_class_tokens :]
        patch = config.vision_config.patch_size
        grid = (pixel_values.shape[2] // patch, pixel_values.shape[3] // patch)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.project(states, grid),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def project(self, states: Tensor, grid: Grid) -> Tensor:
        """Projects what the tower gives of patches.

        Args:
            states: [tiles, rows * columns, C], without class token.
            grid: (rows, columns).

        Returns:
            [tiles, rows * columns / downsample_factor**2, D].

        Raises:
            UserError: If rows or columns are no multiple of `downsample_factor`.
        """
        config = self.config
        return self.mlp1(pixel_shuffle(states, grid, config.downsample_factor, config.ps_version))


class SailVLVisionModel(SailVLPreTrainedModel):
    """Tower and projector alone, without the weights of the language model."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^language_model\."]

    def __init__(self, config: SailVLConfig) -> None:
        super().__init__(config)
        self._build_vision(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encodes tiles; see `get_image_features`."""
        return self.get_image_features(pixel_values, **kwargs)


class SailVLForConditionalGeneration(SailVLPreTrainedModel, GenerationMixin):
    """SAIL-VL with its language model: answers questions about images."""

    # Trainer would divide by a count of labels that takes in those of images.
    accepts_loss_kwargs = False

    def __init__(self, config: SailVLConfig) -> None:
        super().__init__(config)
        self._build_vision(config)
        self.language_model = LANGUAGE_MODELS[config.text_config.model_type](config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def embed_prompt(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Embeds a prompt, with the features of its tiles in place of `<IMG_CONTEXT>`.

        Args:
            input_ids: int64 [batch, length].
            image_features: [tiles, tokens, D] of all tiles of all images, in order, as `get_image_features` gives
                them; None where the prompt holds no image.

        Returns:
            [batch, length, D].

        Raises:
            UserError: If there are not as many features as `<IMG_CONTEXT>` tokens.
        """
        embeds = self.get_input_embeddings()(input_ids)
        # The single tokens of decoding are not looked through, for that would make the device wait at each of them.
        if image_features is None and (input_ids.shape[1] == 1 or self.config.image_token_id is None):
            return embeds
        is_image = input_ids == self.config.required_image_token_id
        if not torch.compiler.is_compiling():
            _require_features(int(is_image.sum()), image_features)
        if image_features is None:
            return embeds
        return embeds.masked_scatter(is_image[..., None], image_features.to(embeds.device, embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predicts the next token at each position.

        Args:
            input_ids: int64 [batch, length]; each tile appears as `tokens_per_tile` times `<IMG_CONTEXT>`.
            pixel_values: [tiles, 3, height, width] of all tiles of all images, in order.
            attention_mask: [batch, length], cached tokens included; zero at padding.
            position_ids: [batch, length]; derived where left out.
            inputs_embeds: [batch, length, D] in place of `input_ids`, images included (`embed_prompt`).
            labels: int64 [batch, length], -100 where nothing is to be learned. `<IMG_CONTEXT>` never counts.
            logits_to_keep: Compute logits for the last so many positions, or for these positions; 0 means all.
            mm_encoder_outputs: `{"image": get_image_features(...)}` in place of `pixel_values`, so that images are
                encoded once for several calls.
            kwargs: Handed to the language model: a cache, `use_cache`, `output_hidden_states`, `return_dict`.

        Returns:
            The output of the language model: `logits` [batch, kept, vocab_size], and `loss` where labels are given.

        Raises:
            UserError: If images and `<IMG_CONTEXT>` tokens disagree.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise UserError("there is no text; give input_ids or inputs_embeds, or use get_image_features")
            inputs_embeds = self.embed_prompt(input_ids, self._image_features(pixel_values, mm_encoder_outputs))
        elif pixel_values is not None or mm_encoder_outputs:
            raise UserError("images go with input_ids; in inputs_embeds they are included already (embed_prompt)")
        if labels is not None and self.config.image_token_id is not None:
            labels = labels.masked_fill(labels == self.config.image_token_id, -100)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _image_features(
        self, pixel_values: Tensor | None, encoded: dict[str, BaseModelOutputWithPooling] | None
    ) -> Tensor | None:
        if encoded and encoded.get("image") is not None:
            return encoded["image"].pooler_output
        return None if pixel_values is None else self.get_image_features(pixel_values, return_dict=True).pooler_output

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        # transformers 5.17 would repeat tile by tile; later ones have encoded tiles by now and repeat the features.
        if pixel_values is not None and input_ids is not None and expand_size > 1:
            tokens = (input_ids == self.config.required_image_token_id).sum(dim=1)
            tiles = (tokens * len(pixel_values) // tokens.sum()).tolist()
            pixel_values = torch.cat([part for part in pixel_values.split(tiles) for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs if pixel_values is None else {**kwargs, "pixel_values": pixel_values}


def _require_features(tokens: int, features: Tensor | None) -> None:
    held = 0 if features is None else features.shape[0] * features.shape[1]
    if tokens != held:
        raise UserError(
            f"the prompt holds {tokens} <IMG_CONTEXT> tokens, but the images fill {held}; "
            "let SailVLProcessor write the prompt from the same images"
        )
