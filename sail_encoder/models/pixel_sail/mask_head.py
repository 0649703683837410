"""Mask head: patch features at eight times their resolution, compared with the state of a `[SEG]` token."""

import torch
from einops import rearrange
from torch import Tensor, nn

from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig

_NORM_EPS = 1e-6


class ChannelNorm(nn.Module):
    """Layer norm over the channels of maps [..., channels, height, width]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels, eps=_NORM_EPS)

    def forward(self, features: Tensor) -> Tensor:
        """Normalises the channels at each place."""
        return self.ln(features.movedim(-3, -1)).movedim(-1, -3)


class SeparableConv(nn.Module):
    """Convolution of 3 x 3 within each channel, then one of 1 x 1 among channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps [..., channels, height, width] to the same shape."""
        return self.pointwise(self.depthwise(features))


def upsampling_block(channels: int) -> nn.Sequential:
    """Block that doubles the height and width of a map."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
        nn.GELU(),
        SeparableConv(channels),
        ChannelNorm(channels),
    )


def projector(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    """Network of two linear layers."""
    return nn.Sequential(nn.Linear(in_channels, hidden_channels), nn.ReLU(), nn.Linear(hidden_channels, out_channels))


class MaskHead(nn.Module):
    """Mask logits from patches and `[SEG]` tokens (arXiv 2504.10465); modules have their published names.

    Args:
        config: Gives the sizes. Transformers wider than `head_channels` get a projector in front of the upsampling.
    """

    def __init__(self, config: PixelSailConfig) -> None:
        super().__init__()
        width, channels = config.hidden_size, config.head_channels or config.hidden_size
        self.image_feature_pre_projector = projector(width, width, channels) if width > channels else nn.Identity()
        self.upsample_blocks = nn.Sequential(*(upsampling_block(channels) for _ in range(config.num_upsampling_blocks)))
        self.image_feature_projector = projector(channels, channels, config.mask_channels)
        self.seg_token_projector = projector(width, channels, config.mask_channels)

    def upsample(self, patch_features: Tensor) -> Tensor:
        """Upsamples patches [..., nh, nw, C] to [..., H, W, head_channels]; each block doubles the sides."""
        features = rearrange(self.image_feature_pre_projector(patch_features), "... h w c -> ... c h w")
        return rearrange(self.upsample_blocks(features), "... c h w -> ... h w c")

    def embed_pixels(self, patch_features: Tensor) -> Tensor:
        """Maps patches [..., nh, nw, C] to what masks are compared with, [..., H, W, mask_channels]."""
        return self.image_feature_projector(self.upsample(patch_features))

    def forward(self, patch_features: Tensor, seg_hidden_states: Tensor) -> Tensor:
        """Computes the logits of masks.

        Args:
            patch_features: [nh, nw, hidden_size], states of an image's patches after the final norm.
            seg_hidden_states: [q, hidden_size], those of the `[SEG]` tokens, one per mask.

        Returns:
            [q, H, W]; H is nh times 2 to the power of the number of upsampling blocks.
        """
        pixels = self.embed_pixels(patch_features)
        return torch.einsum("qc,hwc->qhw", self.seg_token_projector(seg_hidden_states), pixels)
