"""Labels by nearest neighbours: no training, an answer within one pass over the data."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.contract import HeadError
from heads.dense import IGNORE
from heads.dense.contract import Labelled, OnePassHead, concatenate
from heads.settings import check_positive

_CHUNK_ELEMENTS = 2**26


class NeighborHead(OnePassHead):
    """Each patch takes the labels of the training patches that are most like it.

    A bank of training patches is kept, with the share of each class among a patch's pixels. A patch is compared with
    the bank by cosine similarity; its nearest neighbours vote with weights softmax(similarity / temperature), as in
    the kNN protocol of DINO (arXiv 2104.14294).

    Args:
        in_channels: Channels of each layer's map.
        num_classes: Classes to tell apart.
        neighbors: How many neighbours vote.
        temperature: Divisor of similarities; small values leave the vote to the nearest.
        bank: Training patches that are kept, drawn evenly from all training images.

    Raises:
        HeadError: If a setting is not a positive number.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        neighbors: int = 20,
        temperature: float = 0.07,
        bank: int = 20_000,
    ) -> None:
        super().__init__()
        check_positive("neighbors", neighbors, whole=True)
        check_positive("temperature", temperature)
        check_positive("bank", bank, whole=True)
        self.settings = {
            "in_channels": list(in_channels),
            "num_classes": num_classes,
            "neighbors": neighbors,
            "temperature": temperature,
            "bank": bank,
        }
        self.neighbors, self.temperature = neighbors, temperature
        self.features: Tensor
        self.shares: Tensor
        self.register_buffer("features", torch.zeros(bank, sum(in_channels), dtype=torch.float16))
        self.register_buffer("shares", torch.zeros(bank, num_classes))

    @torch.no_grad()
    def fit(self, batches: Iterable[Labelled], count: int) -> None:
        """Fills the bank with patches drawn evenly from `count` batches; patches that are mostly ignored are left out.

        Where the batches hold fewer patches than the bank, the bank shrinks.

        Raises:
            HeadError: If no patch is labelled.
        """
        room, classes = self.shares.shape
        generator = torch.Generator().manual_seed(0)
        features: list[Tensor] = []
        shares: list[Tensor] = []
        for index, (maps, labels) in enumerate(batches):
            quota = room * (index + 1) // count - sum(map(len, shares))
            joined = concatenate(maps)
            share, counted = class_shares(labels, joined.shape[2:], classes)
            candidates = counted.ge(0.5).nonzero().squeeze(1).cpu()
            chosen = candidates[torch.randperm(len(candidates), generator=generator)[:quota]].to(joined.device)
            features.append(F.normalize(joined.permute(0, 2, 3, 1).flatten(0, 2)[chosen], dim=1).half())
            shares.append(share[chosen])
        if not sum(map(len, features)):
            raise HeadError("no patch of the training images is labelled, so there are no neighbors; check the masks")
        self.features, self.shares = torch.cat(features), torch.cat(shares)
        self.settings["bank"] = len(self.features)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logarithms of the votes, [n, classes, nh, nw]."""
        joined = concatenate(maps)
        queries = F.normalize(joined.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        bank = self.features.to(queries.dtype)
        votes = [self._vote(part @ bank.T) for part in queries.split(max(1, _CHUNK_ELEMENTS // len(bank)))]
        n, _, rows, columns = joined.shape
        shares = torch.cat(votes).view(n, rows, columns, -1).permute(0, 3, 1, 2)
        return shares.clamp_min(1e-6).log()

    def _vote(self, similarities: Tensor) -> Tensor:
        nearest = similarities.topk(min(self.neighbors, similarities.shape[1]), dim=1)
        weights = nearest.values.div(self.temperature).softmax(dim=1)
        return torch.einsum("qk,qkc->qc", weights, self.shares[nearest.indices].to(weights.dtype))


def class_shares(labels: Tensor, grid: Sequence[int], classes: int) -> tuple[Tensor, Tensor]:
    """The share of each class among the pixels of each patch.

    Args:
        labels: uint8 [n, height, width].
        grid: Rows and columns of patches over the same field of view.
        classes: How many classes there are.

    Returns:
        [n * nh * nw, classes], which sum to one over the pixels that count, and the share of pixels that count,
        [n * nh * nw].
    """
    n, height, width = labels.shape
    rows, columns = grid
    row = torch.arange(height, device=labels.device) * rows // height
    column = torch.arange(width, device=labels.device) * columns // width
    cell = (row[:, None] * columns + column)[None] + torch.arange(n, device=labels.device)[
        :, None, None
    ] * rows * columns
    bins = torch.where(labels == IGNORE, classes, labels.long())
    flat = (cell * (classes + 1) + bins).flatten()
    counts = torch.bincount(flat, minlength=n * rows * columns * (classes + 1)).view(-1, classes + 1).float()
    counted = counts[:, :classes]
    total = counted.sum(dim=1)
    return counted / total.clamp_min(1)[:, None], total / counts.sum(dim=1)
