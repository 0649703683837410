"""From the patches of an image to one vector by attention.

Images of any size are packed: the patches of all of them are the rows of one matrix, and `counts` says how many belong
to each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.contract import HeadError


def check_heads(heads: int, project_keys: bool) -> None:
    """Makes sure that attention can have so many heads.

    Raises:
        HeadError: If it cannot.
    """
    if heads > 1 and not project_keys:
        raise HeadError(f"heads is {heads}, but without project_keys each query is a head; use heads=1")


class AttentionPool(nn.Module):
    """Pools patches by how much they match learned queries.

    With `project_keys` it is the pooling of AIM's attentive probe (El-Nouby et al. 2024, arXiv 2401.08541): queries and
    projected keys and values are split into heads, and the results of several queries are averaged. Without, it is that
    of efficient probing (Psomas et al. 2025, arXiv 2506.10178): each query is matched with the patches themselves, and
    pools a slice of the projected values of its own.

    Args:
        dim: C, channels of a patch.
        queries: Learned queries.
        heads: Heads of attention; more than 1 only with `project_keys`.
        project_keys: Whether keys are projected.

    Raises:
        HeadError: If the channels cannot be split into so many parts.
    """

    def __init__(self, dim: int, queries: int = 1, heads: int = 1, project_keys: bool = True) -> None:
        super().__init__()
        check_heads(heads, project_keys)
        self.parts = heads if project_keys else queries
        if queries < 1 or self.parts < 1 or dim % self.parts:
            raise HeadError(f"{dim} channels cannot be split into {self.parts} parts; choose a divisor of {dim}")
        self.queries = nn.Parameter(0.02 * torch.randn(queries, dim))
        self.key = nn.Linear(dim, dim, bias=False) if project_keys else None
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, patches: Tensor, counts: Tensor) -> Tensor:
        """Pools packed images.

        Patches are pooled before the values are projected, and queries go through the keys' projection in place of
        the patches: the same sums in another order, which cost a product per image and not per patch.

        Args:
            patches: [total patches, C].
            counts: Patches of each image [images], on the CPU.

        Returns:
            [images, C].
        """
        padded, absent = pad_patches(patches, counts)
        logits = torch.einsum("ntc,cpq->ntpq", padded, self._matchers())
        weights = logits.masked_fill(absent[..., None, None], -torch.inf).softmax(1).mean(-1)
        pooled = torch.einsum("ntp,ntc->npc", weights, padded)
        slices = self.value.weight.unflatten(0, (self.parts, -1))
        return torch.einsum("npc,pdc->npd", pooled, slices).flatten(1)

    def _matchers(self) -> Tensor:
        """Factors [C, parts, queries of a part] on patches that give the logits of attention.

        The queries of a part are averaged after the softmax.
        """
        dim = self.queries.shape[1]
        if self.key is None:
            return self.queries.T[..., None] * dim**-0.5
        keys = self.key.weight.unflatten(0, (self.parts, -1))
        queries = self.queries.unflatten(1, (self.parts, -1))
        return torch.einsum("pdc,qpd->cpq", keys, queries) * keys.shape[1] ** -0.5


def pad_patches(patches: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Brings packed images to one length.

    Args:
        patches: [total patches, C].
        counts: Patches of each image [images], on the CPU.

    Returns:
        [images, longest, C] with zeros after each image, and where these are: bool [images, longest].
    """
    longest = int(counts.max())
    present = torch.arange(longest) < counts[:, None]
    places = present.flatten().nonzero().squeeze(1).to(patches.device)
    padded = patches.new_zeros(len(counts) * longest, patches.shape[1]).index_copy(0, places, patches)
    return padded.unflatten(0, (len(counts), longest)), ~present.to(patches.device)


def pack_patches(grids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Patches [total patches, C] of images [nh, nw, C] of any size, and how many each has [images], on the CPU."""
    patches = [grid.flatten(0, -2) for grid in grids]
    return torch.cat(patches), torch.tensor([len(one) for one in patches])
