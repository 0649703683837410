"""Enlarging maps of logits to the size of an image, a block of rows at a time.

All of it is bilinear with `align_corners=False`, so that a patch stays on its pixels. With the classes last, a block of
rows of all classes fits the caches of a processor, the softmax runs along memory, and the enlarged logits of a whole
image, 160 MB at 512 x 512 with 150 classes, never exist.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sail_encoder.images.resizing import Size

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Enlarged logits that exist at a time, by device."""


def rows_at_a_time(width: int, classes: int, device: torch.device) -> int:
    """Number of rows of enlarged logits that make a block."""
    return max(1, CHUNK_ELEMENTS.get(device.type, 2**24) // (width * classes))


def bilinear_weights(small: int, large: int, like: Tensor) -> Tensor:
    """The matrix [large, small] that enlarges a line, of the type and on the device of a tensor.

    For maps of few patches the product is the fastest way, above all for gradients.
    """
    line = torch.eye(small, device=like.device, dtype=like.dtype)
    return F.interpolate(line[None], large, mode="linear")[0].T.contiguous()


def most_likely(views: Sequence[Tensor], size: Size) -> Tensor:
    """The class of each pixel: that of the highest logit, or of the highest mean probability of several views.

    Args:
        views: Logits [classes, h, w], each over the same field of view.
        size: Height and width of the image.

    Returns:
        uint8 [height, width].
    """
    rows = rows_at_a_time(size[1], len(views[0]), views[0].device)
    labels = []
    for blocks in zip(*(_enlarge(view, size, rows) for view in views), strict=True):
        # A softmax does not change which class of a single view is the highest.
        votes = blocks[0] if len(blocks) == 1 else torch.stack([block.softmax(2) for block in blocks]).sum(0)
        labels.append(votes.argmax(2).byte())
    return torch.cat(labels)


def add_probabilities(total: Tensor, view: Tensor) -> None:
    """Adds the probabilities of a view, logits [classes, h, w], to those of an image [height, width, classes]."""
    size = (total.shape[0], total.shape[1])
    top = 0
    for block in _enlarge(view, size, rows_at_a_time(size[1], len(view), view.device)):
        total[top : top + len(block)] += block.softmax(2)
        top += len(block)


def most_voted(total: Tensor) -> Tensor:
    """The class of each pixel, uint8 [height, width], from sums of probabilities [height, width, classes]."""
    rows = rows_at_a_time(total.shape[1], total.shape[2], total.device)
    return torch.cat([block.argmax(2).byte() for block in total.split(rows)])


def _enlarge(logits: Tensor, size: Size, rows: int) -> Iterator[Tensor]:
    """Blocks of enlarged logits [rows, width, classes], from the top; maps of any size, those of pixels too."""
    small = logits.permute(1, 2, 0).contiguous()
    left, right, across = _neighbors(small.shape[1], size[1], logits)
    for upper, lower, down in zip(*(part.split(rows) for part in _neighbors(len(small), size[0], logits)), strict=True):
        lines = torch.lerp(small[upper], small[lower], down[:, None, None])
        yield torch.lerp(lines[:, left], lines[:, right], across[:, None])


def _neighbors(small: int, large: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each place of a line of `large` the two places of one of `small` that it lies between, and how far along."""
    place = ((torch.arange(large, device=like.device) + 0.5) * (small / large) - 0.5).clamp_min(0)
    first = place.long()
    return first, (first + 1).clamp_max(small - 1), (place - first).to(like.dtype)
