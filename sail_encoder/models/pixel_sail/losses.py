"""Losses of masks at points, as in PointRend (arXiv 1912.08193) and Mask2Former (arXiv 2112.01527).

Most points are where the predicted mask is undecided. The factors near one in the means are those of the published
training.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig

_SMALL = 1e-4
"""Added to counts in the published training."""

_DICE_SMOOTHING = 1.0


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps between their pixels, bilinear.

    Args:
        maps: [q, height, width].
        points: [q, points, 2], x and y from 0 to 1 over each map.

    Returns:
        [q, points].
    """
    places = 2 * points[:, None] - 1
    return F.grid_sample(maps[:, None], places.to(maps.dtype), align_corners=False)[:, 0, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample_ratio: float, importance_sample_ratio: float) -> Tensor:
    """Draws points of which most lie where logits are close to zero.

    Args:
        logits: [q, height, width].
        count: Points per mask.
        oversample_ratio: So many times as many points are drawn first.
        importance_sample_ratio: Share of `count` that is taken from these, closest to zero first; the others are
            drawn anywhere.

    Returns:
        [q, count, 2], x and y from 0 to 1.
    """
    drawn = torch.rand(len(logits), int(count * oversample_ratio), 2, device=logits.device)
    uncertainty = -sample_points(logits, drawn).abs()
    chosen = uncertainty.topk(int(count * importance_sample_ratio), dim=1).indices
    important = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    anywhere = torch.rand(len(logits), count - chosen.shape[1], 2, device=logits.device)
    return torch.cat((important, anywhere), dim=1)


def mask_losses(logits: Tensor, targets: Tensor, config: PixelSailConfig) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss, summed over the masks of an image.

    Args:
        logits: [q, H, W].
        targets: [q, height, width] of any size, 0 or 1.
        config: Says how points are drawn.

    Returns:
        Two scalars in float32, before their weights.
    """
    logits, targets = logits.float(), targets.to(logits.device, torch.float32)
    ratios = config.oversample_ratio, config.importance_sample_ratio
    points = uncertain_points(logits, config.train_num_points, *ratios)
    predicted, actual = sample_points(logits, points), sample_points(targets, points)
    cross_entropy = F.binary_cross_entropy_with_logits(predicted, actual, reduction="sum")
    cross_entropy = cross_entropy / (config.train_num_points + _SMALL)
    shares = predicted.sigmoid()
    overlap = 2 * (shares * actual).sum(dim=1) + _DICE_SMOOTHING
    dice = 1 - overlap / (shares.sum(dim=1) + actual.sum(dim=1) + _DICE_SMOOTHING)
    return cross_entropy, dice.sum() / (1 + _SMALL)


def mean_mask_losses(logits: list[Tensor], targets: list[Tensor], config: PixelSailConfig) -> tuple[Tensor, Tensor]:
    """Weighted losses per mask of several images.

    Args:
        logits: Per image [q, H, W].
        targets: Per image [q, height, width].
        config: Gives the weights.

    Returns:
        Binary cross-entropy and Dice loss.
    """
    sums = [mask_losses(*image, config) for image in zip(logits, targets, strict=True)]
    cross_entropy, dice = (torch.stack(parts).sum() for parts in zip(*sums, strict=True))
    masks = sum(len(image) for image in logits) + _SMALL
    return config.mask_weight * cross_entropy / masks, config.dice_weight * dice / masks
