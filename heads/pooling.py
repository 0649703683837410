"""From the patches of an image to one vector: mean, max, generalized mean, attention.

Images of any size are packed: the patches of all of them are the rows of one matrix, and `counts` says how many belong
to each.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heads.contract import HeadError

Pooling = Literal["mean", "max", "gem"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max", "gem")


def pool_grid(grid: Tensor, how: Pooling = "mean", power: float = 3.0) -> Tensor:
    """Pools the patches of one image.

    Args:
        grid: [nh, nw, C], or any [..., C].
        how: `mean`, `max`, or `gem`, the generalized mean with the sign of each feature kept apart from its size
            (Radenović et al. 2019, arXiv 1711.02512, for features that may be negative).
        power: Exponent of the generalized mean; 1 is the mean, and the larger it is, the closer to the largest.

    Returns:
        [C].

    Raises:
        HeadError: If the pooling is unknown or the power is not positive.
    """
    patches = grid.flatten(0, -2)
    if how == "mean":
        return patches.mean(0)
    if how == "max":
        return patches.amax(0)
    if how != "gem":
        raise HeadError(f"pooling '{how}' is unknown; use {', '.join(POOLINGS)}")
    if power <= 0:
        raise HeadError(f"the power of the generalized mean is {power}; give a positive number, such as 3")
    return _generalized_mean(patches.clamp_min(0), power) - _generalized_mean(-patches.clamp_max(0), power)


def _generalized_mean(patches: Tensor, power: float) -> Tensor:
    """(mean of x^p)^(1/p) over rows; divided by the largest first, so that no power overflows."""
    largest = patches.amax(0).clamp_min(torch.finfo(patches.dtype).tiny)
    return largest * (patches / largest).pow(power).mean(0).pow(1 / power)


class AttentionPool(nn.Module):
    """Pools patches by how much they match learned queries.

    With `project_keys` it is the pooling of AIM's attentive probe (El-Nouby et al. 2024, arXiv 2401.08541): queries and
    projected keys and values are split into heads, and the results of several queries are averaged. Without, it is that
    of efficient probing (Psomas et al. 2025, arXiv 2506.10178): each query is matched with the patches themselves, and
    pools a slice of the projected values of its own.

    Args:
        dim: C, channels of a patch.
        queries: Learned queries.
        heads: Heads of attention; with `project_keys` alone.
        project_keys: Whether keys are projected.

    Raises:
        HeadError: If the channels cannot be split into so many parts.
    """

    def __init__(self, dim: int, queries: int = 1, heads: int = 1, project_keys: bool = True) -> None:
        super().__init__()
        if heads > 1 and not project_keys:
            raise HeadError(f"heads is {heads}, but without projected keys each query is a head; use heads=1")
        self.parts = heads if project_keys else queries
        if queries < 1 or self.parts < 1 or dim % self.parts:
            raise HeadError(f"{dim} channels cannot be split into {self.parts} parts; choose a divisor of {dim}")
        self.queries = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.key = nn.Linear(dim, dim, bias=False) if project_keys else None
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, patches: Tensor, counts: Tensor) -> Tensor:
        """Pools packed images.

        Args:
            patches: [total patches, C].
            counts: Patches of each image [images].

        Returns:
            [images, C].
        """
        owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(patches))
        weights = segment_softmax(self._match(patches), owner, len(counts))
        values = self.value(patches).view(len(patches), self.parts, -1)
        pooled = values.new_zeros(len(counts), *values.shape[1:])
        return pooled.index_add(0, owner, weights.unsqueeze(-1) * values).flatten(1)

    def _match(self, patches: Tensor) -> Tensor:
        """Logits [total patches, parts, queries of a part]; the queries of a part are averaged after the softmax."""
        if self.key is None:
            return (patches @ self.queries.T)[..., None] * patches.shape[1] ** -0.5
        keys = self.key(patches).view(len(patches), self.parts, -1)
        queries = self.queries.view(len(self.queries), self.parts, -1)
        return torch.einsum("tpc,qpc->tpq", keys, queries) * keys.shape[-1] ** -0.5


def segment_softmax(logits: Tensor, owner: Tensor, count: int) -> Tensor:
    """Softmax over the patches of each image, averaged over queries.

    Args:
        logits: [total patches, parts, queries].
        owner: Which image each patch belongs to [total patches].
        count: Number of images.

    Returns:
        Weights [total patches, parts], which sum to 1 over each image.
    """
    index = owner[:, None, None].expand_as(logits)
    largest = logits.new_full((count, *logits.shape[1:]), -torch.inf)
    largest = largest.scatter_reduce(0, index, logits.detach(), "amax")
    unnormalised = (logits - largest[owner]).exp()
    total = logits.new_zeros(count, *logits.shape[1:]).index_add(0, owner, unnormalised)
    return (unnormalised / total[owner]).mean(-1)


def pack_patches(grids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Patches [total patches, C] of images [nh, nw, C] of any size, and how many each has [images]."""
    patches = [grid.flatten(0, -2) for grid in grids]
    return torch.cat(patches), torch.tensor([len(one) for one in patches], device=patches[0].device)
