"""Configuration of Pixel-SAIL: a SAIL, its mask head and visual prompts, and how it is trained."""

from math import ceil, log2
from os import PathLike
from typing import Any

from huggingface_hub.dataclasses import strict

from sail_encoder.auto import register_pixel_sail_models
from sail_encoder.io.errors import UserError
from sail_encoder.models.pixel_sail.published import read_config
from sail_encoder.models.sail.configuration_sail import SailConfig

_WIDEST_HEAD = 1024
"""Channels of the mask head at most, as published: wider transformers get a projector in front of it."""

_FINEST_STRIDE = 4
"""Stride in pixels that the published code halves the patch size down to, before it adds one block more."""


@strict
class PixelSailConfig(SailConfig):
    """Sizes, token ids and training of a Pixel-SAIL (arXiv 2504.10465), beside those of its `SailConfig`.

    Args:
        seg_token_id: Id of `[SEG]`, which stands in an answer for a mask.
        visual_prompt_token_ids: Ids of `<Prompt0>` to `<Prompt14>`, which name regions.
        mask_channels: Channels of the dot product of pixels and `[SEG]`; published models have 256 or 512.
        head_channels: Channels of the upsampling blocks; `hidden_size` up to 1024 where None.
        train_num_points: Points per mask at which the losses are taken.
        oversample_ratio: So many times as many points are drawn, of which the most uncertain are kept.
        importance_sample_ratio: Share of the points that are chosen by uncertainty; the others are random.
        mask_weight: Weight of the binary cross-entropy.
        dice_weight: Weight of the Dice loss.
        text_weight: Weight of the loss of the text where there are masks in the batch, and 1 where there are none.
    """

    model_type = "pixel_sail"

    seg_token_id: int | None = None
    visual_prompt_token_ids: list[int] | None = None
    mask_channels: int = 512
    head_channels: int | None = None
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    mask_weight: float = 2.0
    dice_weight: float = 0.5
    text_weight: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_channels = self.head_channels or min(self.hidden_size, _WIDEST_HEAD)
        super().__post_init__(**kwargs)
        register_pixel_sail_models()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads config.json, completed where it is a published one; `from_pretrained` calls it."""
        raw, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if raw.get("model_type") != cls.model_type:
            raw = read_config(str(pretrained_model_name_or_path), kwargs.get("revision"))
        return raw, rest

    @property
    def num_upsampling_blocks(self) -> int:
        """Blocks that double the grid: three for patches of 14 and of 16 pixels, as the published code counts them."""
        return 1 + max(0, ceil(log2(self.vision_patch_size / _FINEST_STRIDE)))

    @property
    def pixel_token_ids(self) -> tuple[int, list[int]]:
        """Id of `[SEG]`, and those of the visual prompts.

        Raises:
            UserError: If they are not set.
        """
        if self.seg_token_id is None or not self.visual_prompt_token_ids:
            raise UserError(
                "the ids of [SEG] and <Prompt0> are unknown; pass seg_token_id= and visual_prompt_token_ids="
            )
        return self.seg_token_id, self.visual_prompt_token_ids
