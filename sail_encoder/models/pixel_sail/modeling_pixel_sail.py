"""Pixel-SAIL: a SAIL that answers with masks, and that can be asked about regions (arXiv 2504.10465).

Beside what SAIL has there are two parts:
- a visual prompt is a region with a name, `<Prompt0>` to `<Prompt14>`, that a question can use; a linear map of the
  name's embedding is added to the patches that the region covers;
- a `[SEG]` token in an answer stands for a mask: its hidden state is compared with those of the patches, upsampled.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
from sail_encoder.models.pixel_sail.losses import mean_mask_losses
from sail_encoder.models.pixel_sail.mask_head import MaskHead
from sail_encoder.models.pixel_sail.published import TRANSFORMER
from sail_encoder.models.pixel_sail.tokens import SEG, VISUAL_PROMPTS, add_pixel_tokens
from sail_encoder.models.sail.checkpoint import open_sail
from sail_encoder.models.sail.config_file import HEAD_MODULES
from sail_encoder.models.sail.modeling_sail import SailForCausalLM, SailModel, SailPreTrainedModel
from sail_encoder.models.sail.packed_images import PackedImages
from sail_encoder.models.sail.positions import as_grids, note_offset

PUBLISHED_NAMES = {
    rf"^{TRANSFORMER}": "",
    rf"^({'|'.join(HEAD_MODULES)})\.": r"mask_head.\1.",
}
"""Names of modules here for those in published files, as regular expressions."""


def mark_patches(pixel_values: Tensor, visual_prompts: Tensor | None) -> Tensor:
    """Appends to each patch the number of its visual prompt, so that both travel as one through the model.

    Args:
        pixel_values: [total patches, 3 * patch_size**2].
        visual_prompts: int64 [total patches], 0 to 14, -1 where there is none; None where there is none at all.

    Returns:
        [total patches, 3 * patch_size**2 + 1], or `pixel_values` as they are.

    Raises:
        ValueError: If there are not as many numbers as patches.
    """
    if visual_prompts is None:
        return pixel_values
    if visual_prompts.shape != pixel_values.shape[:1]:
        raise ValueError(
            f"visual_prompts has shape {list(visual_prompts.shape)}, but there are {len(pixel_values)} patches"
        )
    # Any floating-point type holds such small numbers exactly.
    return torch.cat((pixel_values, visual_prompts.to(pixel_values)[:, None]), dim=1)


class PixelSailPreTrainedModel(SailPreTrainedModel):
    """Loading of Pixel-SAIL checkpoints, native or published."""

    config: PixelSailConfig
    config_class = PixelSailConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint; options as in transformers.

        Raises:
            CheckpointError: If tensors are missing, or of another shape.
        """
        wants_info, any_shape = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
        kwargs = {"key_mapping": PUBLISHED_NAMES, **kwargs, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if info["mismatched_keys"] and not any_shape:
            # transformers would name them in a log, and raise an error that refers to it.
            name, stored, expected = min(info["mismatched_keys"])
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: {name} is {list(stored)}, but config.json calls for {list(expected)}"
            )
        if missing := info["missing_keys"]:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} tensors that its config.json calls for, first "
                f"{min(missing)}; get the original files"
            )
        if model.can_generate() and isinstance(ends := model.config.eos_token_id, list):
            # Beside published files, transformers takes the one token that config.json names for the only one.
            model.generation_config.eos_token_id = ends
        return (model, info) if wants_info else model

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> Any:
        """Saves as transformers does, under the names here even where published files had been loaded."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)


class PixelSailModel(PixelSailPreTrainedModel, SailModel):
    """The transformer of a Pixel-SAIL, without the language head and the mask head.

    In place of `pixel_values` it also takes patches that `mark_patches` has marked.
    """

    _keys_to_ignore_on_load_unexpected = [r"lm_head\.weight", r"mask_head\."]

    def __init__(self, config: PixelSailConfig) -> None:
        super().__init__(config)
        self.vp_embed = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    def encode_image(
        self, pixel_values: Tensor, image_grid_hw: Tensor, visual_prompts: Tensor | None = None
    ) -> tuple[DynamicCache, Tensor]:
        """Runs one image alone.

        Args:
            pixel_values: [nh * nw, 3 * patch_size**2], normalised.
            image_grid_hw: [1, 2], its rows and columns of patches.
            visual_prompts: int64 [nh * nw], see `mark_patches`.

        Returns:
            A cache of `nh * nw + 2` tokens for text, and the features of the patches after the final norm [nh, nw, C].
        """
        patches = mark_patches(pixel_values, visual_prompts)
        images = PackedImages.from_grids(image_grid_hw, patches, self.config)
        cache = DynamicCache(config=self.config)
        *_, hidden = self.residual_stream(patches, images, cache)
        note_offset(cache, images.position_ids[:, None])
        return cache, self.norm(hidden[images.patch_index]).unflatten(0, as_grids(image_grid_hw)[0])

    def _add_pixels(self, tokens: Tensor, pixel_values: Tensor, patch_index: Tensor) -> Tensor:
        pixels, numbers = pixel_values.tensor_split([self.config.patch_dim], dim=1)
        tokens = super()._add_pixels(tokens, pixels, patch_index)
        if not numbers.shape[1]:
            return tokens
        _, prompt_ids = self.config.pixel_token_ids
        names = self.embed_tokens(torch.tensor(prompt_ids, device=tokens.device))
        # A row of zeros at the end is what number -1 finds.
        added = F.pad(self.vp_embed(names), (0, 0, 0, 1))[numbers[:, 0].long()]
        return tokens.index_add(0, patch_index, added.to(tokens.dtype))


@dataclass
class PixelSailOutput(CausalLMOutputWithPast):
    """Output of `PixelSailForCausalLM`, with these fields beside those of every language model where masks are given.

    Attributes:
        mask_logits: Per image with masks [q, H, W].
        text_loss: Loss of the text, before its weight.
        mask_loss: Binary cross-entropy of the masks, weighted.
        dice_loss: Dice loss of the masks, weighted.
    """

    mask_logits: tuple[Tensor, ...] | None = None
    text_loss: Tensor | None = None
    mask_loss: Tensor | None = None
    dice_loss: Tensor | None = None


class PixelSailForCausalLM(PixelSailPreTrainedModel, SailForCausalLM):
    """Pixel-SAIL with its language head and its mask head."""

    trunk_class = PixelSailModel

    def __init__(self, config: PixelSailConfig) -> None:
        super().__init__(config)
        self.mask_head = MaskHead(config)
        self.post_init()

    @classmethod
    def from_sail(
        cls, name: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32, **fields: Any
    ) -> "PixelSailForCausalLM":
        """Makes a Pixel-SAIL of a SAIL, to be trained: visual prompts and mask head are random.

        Args:
            name: `sail-tiny`, a folder or a Hub name of a SAIL with its language head, published or native.
            tokenizer: Its tokenizer, to which the tokens of Pixel-SAIL are added where it lacks them.
            dtype: Precision of the weights.
            fields: Fields of `PixelSailConfig`, such as `mask_channels`.

        Returns:
            The model; embeddings of added tokens are drawn around the mean of the others.

        Raises:
            CheckpointError: If there is no such SAIL, or it is an encoder without language head.
        """
        folder = find_checkpoint(name)
        sail = open_sail(folder)
        if not sail.has_language_head:
            raise CheckpointError(f"{name} is an encoder without language head; use the full checkpoint")
        ids = add_pixel_tokens(tokenizer)
        added = {"seg_token_id": ids[SEG], "visual_prompt_token_ids": [ids[token] for token in VISUAL_PROMPTS]}
        inherited = {**sail.config.to_dict(), "architectures": [cls.__name__]}
        inherited.pop("model_type")
        config = PixelSailConfig(**{**inherited, **added, **fields})
        # Past the check for missing tensors: here they are what is to be trained.
        model = super(PixelSailPreTrainedModel, cls).from_pretrained(folder, config=config, dtype=dtype)
        if len(tokenizer) > config.vocab_size:
            model.resize_token_embeddings(len(tokenizer))
        return model

    def mask_logits(self, patch_features: Tensor, seg_hidden_states: Tensor) -> Tensor:
        """Compares the patches of an image with the `[SEG]` tokens of an answer.

        Args:
            patch_features: [nh, nw, C] after the final norm, before the pre-projector.
            seg_hidden_states: [q, C] after the final norm.

        Returns:
            [q, H, W]; a pixel is inside a mask where its logit is above zero.
        """
        logits: Tensor = self.mask_head(patch_features, seg_hidden_states)
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        visual_prompts: Tensor | None = None,
        mask_labels: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> PixelSailOutput:
        """Predicts the next token at each position, and in training masks.

        Inputs and errors are those of `SailForCausalLM.forward`, and two are added. `visual_prompts`, int64
        [total patches], are the numbers of regions, see `mark_patches`. `mask_labels`, per image [q, height, width], 0
        or 1, at any size, are the masks of the `[SEG]` tokens that follow the image, in their order; [0, height, width]
        where there is none.

        Returns:
            As `SailForCausalLM.forward`. With `mask_labels` the loss is the weighted sum of those of text and masks.

        Raises:
            ValueError: If masks and `[SEG]` tokens do not agree in number, or nothing tells the tokens or the images.
        """
        if pixel_values is not None:
            pixel_values = mark_patches(pixel_values, visual_prompts)
        keep_states = kwargs.pop("output_hidden_states", self.config.output_hidden_states)
        options = {**kwargs, "output_hidden_states": keep_states or mask_labels is not None, "return_dict": True}
        # They are named one by one because `generate` and `Trainer` look for the names in this signature.
        inputs = input_ids, pixel_values, image_grid_hw, attention_mask, position_ids, past_key_values, inputs_embeds
        outputs = PixelSailOutput(**super().forward(*inputs, labels, logits_to_keep, **options))
        if mask_labels is None:
            return outputs
        if input_ids is None or image_grid_hw is None:
            raise ValueError("mask_labels need input_ids and image_grid_hw, to tell what they are the masks of")
        logits = self._training_logits(input_ids, image_grid_hw, outputs.hidden_states[-1], mask_labels)
        outputs.hidden_states = outputs.hidden_states if keep_states else None
        return self._add_mask_losses(outputs, logits, mask_labels)

    def _training_logits(
        self, input_ids: Tensor, image_grid_hw: Tensor, states: Tensor, mask_labels: list[Tensor]
    ) -> list[Tensor]:
        """Per image logits [q, H, W], from the states of all tokens [batch, length, hidden_size]."""
        _, patch_id, end_id = self.config.vision_token_ids
        grids = as_grids(image_grid_hw)
        patches = states[torch.eq(input_ids, patch_id)].split([rows * columns for rows, columns in grids])
        is_seg = torch.eq(input_ids, self.config.pixel_token_ids[0])
        # A mask belongs to the last image before its token; the last count is of tokens without an image before them.
        is_end = torch.eq(input_ids, end_id)
        image_of_token = is_end.flatten().cumsum(0).view_as(input_ids) - 1
        image_of_token = image_of_token.where(is_end.cumsum(1) > 0, len(grids))
        counts = torch.bincount(image_of_token[is_seg], minlength=len(grids) + 1).tolist()
        expected = [len(masks) for masks in mask_labels]
        if counts != [*expected, 0]:
            raise ValueError(
                f"the images have {counts[:-1]} [SEG] tokens after them, {counts[-1]} have no image before them, and "
                f"mask_labels {expected} masks"
            )
        segs = states[is_seg].split(expected)
        return [
            self.mask_logits(image.unflatten(0, grid), seg)
            for image, grid, seg in zip(patches, grids, segs, strict=True)
            if len(seg)
        ]

    def _add_mask_losses(
        self, outputs: PixelSailOutput, logits: list[Tensor], mask_labels: list[Tensor]
    ) -> PixelSailOutput:
        outputs.text_loss = outputs.loss
        if not logits:
            return outputs
        targets = [masks for masks in mask_labels if len(masks)]
        outputs.mask_logits = tuple(logits)
        outputs.mask_loss, outputs.dice_loss = mean_mask_losses(logits, targets, self.config)
        outputs.loss = outputs.mask_loss + outputs.dice_loss
        if outputs.text_loss is not None:
            outputs.loss = outputs.loss + self.config.text_weight * outputs.text_loss
        return outputs

    def generate(self, *args: Any, visual_prompts: Tensor | None = None, **kwargs: Any) -> Any:
        """Generates as `SailForCausalLM.generate` does; `visual_prompts` as in `forward`."""
        if visual_prompts is not None:
            kwargs["pixel_values"] = mark_patches(kwargs["pixel_values"], visual_prompts)
        return super().generate(*args, **kwargs)
