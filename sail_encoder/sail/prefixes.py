"""Images as the encoder path takes them: prefixes without text, end to end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sail_encoder.attention import Segments
from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.positions import as_grids, prefix_positions


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
    def of(cls, pixel_values: Tensor, image_grid_hw: Tensor, config: SailConfig) -> "ImagePrefixes":
        """Lays out images, on the device of their pixels.

        Args:
            pixel_values: [total patches, 3 * patch_size**2].
            image_grid_hw: [images, 2], rows and columns of patches.
            config: Says which tokens stand for images.

        Raises:
            ValueError: If the grids do not add up to the patches.
        """
        start_id, patch_id, end_id = config.vision_token_ids
        grids, device = as_grids(image_grid_hw), pixel_values.device
        lengths = [rows * columns + 2 for rows, columns in grids]
        check_patches(pixel_values, sum(lengths) - 2 * len(grids), "image_grid_hw describes")
        ends = torch.tensor(lengths).cumsum(0) - 1
        starts = ends - torch.tensor(lengths) + 1
        input_ids = torch.full((sum(lengths),), patch_id)
        input_ids[starts], input_ids[ends] = start_id, end_id
        is_patch = torch.ones_like(input_ids, dtype=torch.bool)
        is_patch[starts] = is_patch[ends] = False
        parts = input_ids, prefix_positions(grids), is_patch.nonzero().squeeze(1)
        ids, positions, patches = (part.to(device, non_blocking=device.type == "cuda") for part in parts)
        return cls(ids, positions, patches, Segments.of(lengths, device))


def check_patches(pixel_values: Tensor, expected: int, source: str) -> None:
    """Raises a `ValueError` if there are not as many patches as `source` says."""
    if len(pixel_values) != expected:
        raise ValueError(f"pixel_values has {len(pixel_values)} patches, but {source} {expected}")
