"""The loss of dense heads: cross-entropy at the size of the labels, within the memory of a few images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.dense import IGNORE

_CHUNK_ELEMENTS = 2**26
"""Upsampled logits that exist at a time; a batch of 16 crops with 150 classes would be 2.5 GB."""


def upsampled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels, of logits that are enlarged to the size of the labels.

    The logits are enlarged bilinearly (`align_corners=False`, so that a patch stays on its pixels) a few images at a
    time, and their gradient is taken at once, so that the enlarged logits of a whole batch never exist.

    Args:
        logits: [n, classes, h, w].
        labels: uint8 [n, height, width]; `IGNORE` does not count.

    Returns:
        A scalar; zero where no pixel counts.
    """
    return _UpsampledCrossEntropy.apply(logits.float(), labels)


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        size = labels.shape[1:]
        images = max(1, _CHUNK_ELEMENTS // (logits.shape[1] * size.numel()))
        counted = labels.ne(IGNORE).sum().clamp_min(1)
        total = logits.new_zeros(())
        gradients = []
        for part, target in zip(logits.split(images), labels.split(images), strict=True):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                enlarged = F.interpolate(leaf, size, mode="bilinear")
                loss = F.cross_entropy(enlarged, target.long(), ignore_index=IGNORE, reduction="sum") / counted
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            total += loss.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * outer[0], None
