"""Images as the encoder path takes them: prefixes without text, end to end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sail_encoder.attention import Segments
from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.positions import Grid, prefix_positions


@dataclass(frozen=True)
class ImagePrefixes:
    """Packed image-only prefixes: `<vision> <vpatch>... </vision>` of every image, end to end.

    Attributes:
        input_ids: int64 [tokens].
        position_ids: int64 [3, tokens].
        patch_index: int64 [patches], where the patches lie among the tokens.
        segments: How the tokens divide into images.
    """

    input_ids: Tensor
    position_ids: Tensor
    patch_index: Tensor
    segments: Segments

    @classmethod
    def of(cls, grids: list[Grid], config: SailConfig, device: torch.device) -> "ImagePrefixes":
        """Lays out images of these grids."""
        start_id, patch_id, end_id = config.vision_token_ids
        lengths = [rows * columns + 2 for rows, columns in grids]
        ends = torch.tensor(lengths).cumsum(0) - 1
        starts = ends - torch.tensor(lengths) + 1
        input_ids = torch.full((sum(lengths),), patch_id)
        input_ids[starts], input_ids[ends] = start_id, end_id
        is_patch = torch.ones_like(input_ids, dtype=torch.bool)
        is_patch[starts] = is_patch[ends] = False
        parts = input_ids, prefix_positions(grids), is_patch.nonzero().squeeze(1)
        ids, positions, patches = (part.to(device, non_blocking=device.type == "cuda") for part in parts)
        return cls(ids, positions, patches, Segments.of(lengths, device))
