"""The loss of dense heads: cross-entropy at the size of the labels, within the memory of a few rows."""

import torch
from torch import Tensor

from heads.dense import IGNORE
from heads.dense.upsampling import bilinear_weights, rows_at_a_time


def upsampled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels, of logits that are enlarged to the size of the labels.

    The logits are enlarged bilinearly (`align_corners=False`, so that a patch stays on its pixels) a block of rows at
    a time, and the gradient of the block is taken at once: the enlarged logits of a batch, 2.5 GB for 16 crops and 150
    classes, never exist. Enlarging is two matrix products, whose gradient is faster than that of `interpolate`.

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
        (n, classes, h, w), (height, width) = logits.shape, labels.shape[1:]
        down, across = bilinear_weights(h, height, logits), bilinear_weights(w, width, logits)
        step = rows_at_a_time(width, classes, logits.device)
        counted = labels.ne(IGNORE).sum().clamp_min(1)
        total, gradient = logits.new_zeros(()), logits.new_zeros(n, h, w * classes)
        for image, small in enumerate(logits.permute(0, 2, 3, 1).reshape(n, h, w * classes)):
            for part, target in zip(down.split(step), labels[image].split(step), strict=True):
                enlarged = across @ (part @ small).view(-1, w, classes)
                loss, slope = _cross_entropy(enlarged.view(-1, classes), target.flatten().long())
                narrowed = across.T @ slope.view(-1, width, classes)
                gradient[image] += part.T @ narrowed.view(len(part), w * classes)
                total += loss
        ctx.save_for_backward(gradient.view(n, h, w, classes).permute(0, 3, 1, 2) / counted)
        return total / counted

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * outer[0], None


def _cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropy over pixels [pixels, classes], and its gradient."""
    counts = target.ne(IGNORE)
    index = torch.where(counts, target, 0)[:, None]
    log_shares = logits.log_softmax(1)
    loss = -(log_shares.gather(1, index)[:, 0] * counts).sum()
    slope = log_shares.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=logits.dtype))
    return loss, slope.mul_(counts[:, None])
