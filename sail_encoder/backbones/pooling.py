"""From the patches of images, and their class tokens where there are some, to one vector per image."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sail_encoder.backbones.batch import Encoded
from sail_encoder.io.devices import send
from sail_encoder.io.errors import UserError

POOLINGS = ("mean", "max", "gem", "cls", "cls_mean")
"""Ways to pool; `cls` and `cls_mean` need a class token."""

GEM_POWER = 3.0


def pool(patches: Tensor, counts: Tensor, how: str, class_tokens: Tensor | None = None) -> Tensor:
    """Pools packed images.

    Args:
        patches: [total patches, C].
        counts: Patches per image [images], on the device of the patches.
        how: `mean`, `max` or `gem` over the patches, `cls` for the class token, or `cls_mean` for the class token
            followed by the mean of the patches, as DINOv2's linear probes have it.
        class_tokens: [images, C], where the backbone has a class token.

    Returns:
        float32 [images, C], or [images, 2 * C] for `cls_mean`.

    Raises:
        UserError: If there is no such pooling, or no class token.
    """
    if how not in POOLINGS:
        raise UserError(f"pooling '{how}' is unknown; use {', '.join(POOLINGS)}")
    if how in ("mean", "max"):
        # "unsafe" leaves out checks of the counts, for which a GPU would have to be waited for.
        return torch.segment_reduce(patches.float(), how, lengths=counts, unsafe=True)
    if how == "gem":
        return generalized_mean(patches.float(), counts)
    if class_tokens is None:
        raise UserError(f"pooling '{how}' needs a class token, but this backbone has none; use mean, max or gem")
    if how == "cls":
        return class_tokens.float()
    return torch.cat([class_tokens.float(), pool(patches, counts, "mean")], 1)


def patch_states(
    encoded: Encoded, layers: Collection[int], lengths: Sequence[int], class_token: bool = False
) -> list[Tensor]:
    """States of the patches of a batch of so many patches per image.

    Returns:
        For each layer [total patches, C], or [total patches, 2 * C] with the image's class token beside each patch, as
        DINOv2's dense heads can read it.
    """
    if not class_token:
        return [encoded.patches[layer] for layer in layers]
    counts = send(torch.tensor(lengths), encoded.patches[next(iter(layers))].device)
    total = sum(lengths)
    return [
        torch.cat(
            (encoded.patches[layer], encoded.class_tokens[layer].repeat_interleave(counts, 0, output_size=total)), 1
        )
        for layer in layers
    ]


def pool_layers(encoded: Encoded, layers: Collection[int], lengths: Sequence[int], how: str) -> list[Tensor]:
    """Pools a batch of so many patches per image; one float32 [images, C] for each layer, as `pool` gives it."""
    counts = send(torch.tensor(lengths), encoded.patches[next(iter(layers))].device)
    return [pool(encoded.patches[layer], counts, how, encoded.class_tokens.get(layer)) for layer in layers]


def pool_grid(grid: Tensor, how: str = "mean", class_token: Tensor | None = None) -> Tensor:
    """Pools one image [nh, nw, C], or any [..., C], in float32; see `pool`.

    Returns:
        [C], or [2 * C] for `cls_mean`.
    """
    patches = grid.flatten(0, -2)
    counts = torch.tensor([len(patches)], device=patches.device)
    return pool(patches, counts, how, None if class_token is None else class_token[None])[0]


def generalized_mean(patches: Tensor, counts: Tensor, power: float = GEM_POWER) -> Tensor:
    """Generalized mean of packed images, with the sign of each feature kept apart from its size.

    It is that of Radenović et al. 2019 (arXiv 1711.02512), for features that may be negative.

    Args:
        patches: float32 [total patches, C].
        counts: Patches per image [images].
        power: Its exponent; 1 is the mean, and the larger it is, the closer to the largest.

    Returns:
        [images, C].
    """
    positive, negative = patches.clamp_min(0), -patches.clamp_max(0)
    return _power_mean(positive, counts, power) - _power_mean(negative, counts, power)


def _power_mean(patches: Tensor, counts: Tensor, power: float) -> Tensor:
    """(mean of x^p)^(1/p) per image; divided by the image's largest first, so that no power overflows."""
    largest = torch.segment_reduce(patches, "max", lengths=counts, unsafe=True).clamp_min(
        torch.finfo(patches.dtype).tiny
    )
    powers = (patches / largest.repeat_interleave(counts, 0, output_size=len(patches))).pow(power)
    return largest * torch.segment_reduce(powers, "mean", lengths=counts, unsafe=True).pow(1 / power)
