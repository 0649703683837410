"""Nearest neighbours by cosine, with votes that fall off with distance; several numbers of neighbours in one pass.

The protocol of DINO (Caron et al. 2021, arXiv 2104.14294): the k nearest training images vote with the weight
exp(cosine / temperature).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from torch import Tensor
from torch.nn import functional as F

from heads.estimator import VectorProbe, is_classifier
from heads.probe import Array, as_tensor
from heads.rows import WORKING_MEMORY, PreparedRows, Rows
from heads.settings import as_values, check_positive
from heads.targets import Task

NEIGHBORS = (10, 20, 100, 200)
"""Numbers of neighbours that DINOv2 and DINOv3 report."""


class KNNProbe(VectorProbe):
    """Weighted votes of the nearest training images.

    Scores are the shares of the votes, or, for labels and numbers, the weighted mean of the neighbours' targets.

    Args:
        k: Number of neighbours, or several to choose from; above the number of training images, all of these vote.
        temperature: Similarity at which a vote counts a factor e less.
        task: `classification` (one class, or several labels) or `regression`.
        refit: Whether images of the validation set become neighbours too, once k is chosen.
        seed: Which samples are held out where there is no validation set.
        device: Where to compute; `auto` takes a GPU where there is one.
        working_memory: Bytes for features and similarities; both are cut into blocks that fit.

    Attributes:
        k_: The number of neighbours that was chosen.
    """

    kind = "knn"
    parameter = "k"
    threshold = 0.5

    def __init__(
        self,
        k: int | Sequence[int] = NEIGHBORS,
        temperature: float = 0.07,
        task: Task = "classification",
        refit: bool = True,
        seed: int = 0,
        device: str = "auto",
        working_memory: int = WORKING_MEMORY,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.task = task
        self.refit = refit
        self.seed = seed
        self.device = device
        self.working_memory = working_memory

    def check(self) -> None:
        super().check()
        check_positive("temperature", self.temperature)

    def candidates(self) -> list[int]:
        return sorted({int(k) for k in as_values("k", self.k, whole=True)}, reverse=True)

    def compare(self, rows: Rows, encoded: Array, values: Sequence[float], held: Rows) -> list[Array]:
        self.learn(rows, encoded, values[0])
        votes = self._votes(held, [int(k) for k in values])
        return [votes[int(k)] for k in values]

    def learn(self, rows: Rows, encoded: Array, value: float) -> None:
        self.k_ = int(value)
        self._neighbors = PreparedRows(rows, _on_the_sphere)
        self._encoded = encoded

    def compute(self, rows: Rows) -> Array:
        return self._votes(rows, [self.k_])[self.k_]

    def _votes(self, queries: Rows, ks: Sequence[int]) -> dict[int, Array]:
        """Scores [queries, outputs] for each number of neighbours, from one search for the largest."""
        precision = torch.promote_types(queries.precision, self._neighbors.rows.precision)
        votes = {k: np.empty((len(queries), self.targets_.width)) for k in ks}
        counted = min(max(ks), len(self._encoded)) if self._encoded.ndim > 1 else 1
        # The targets of the neighbours or, of classes, the votes; a few arrays of their size are there at once.
        rows = queries.rows_per_block(16 * queries.width * precision.itemsize + 4 * counted * self.targets_.width * 8)
        for where, block in queries.blocks(precision, rows):
            nearest = self._search(_on_the_sphere(block), max(ks))
            for k, share in zip(sorted(ks), self._count(*nearest, sorted(ks)), strict=True):
                votes[k][where] = share.cpu().numpy()
        return votes

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and indices [queries, k] of the nearest neighbours, nearest first."""
        best = (
            queries.new_empty(len(queries), 0),
            torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device),
        )
        for where, block in self._neighbors.blocks(queries.dtype, outputs=len(queries)):
            near = (queries @ block.T).topk(min(k, len(block)))
            merged = torch.cat((best[0], near.values), 1), torch.cat((best[1], near.indices + where.start), 1)
            values, order = merged[0].topk(min(k, merged[0].shape[1]))
            best = values, merged[1].gather(1, order)
        return best

    def _count(self, similarities: Tensor, index: Tensor, ks: Sequence[int]) -> Iterator[Tensor]:
        """Shares of the votes [queries, outputs] among the first k neighbours, for each k in turn."""
        weights = ((similarities - similarities[:, :1]) / self.temperature).double().exp()
        encoded = torch.as_tensor(self._encoded, device=index.device)
        votes = weights.new_zeros(len(index), self.targets_.width)
        for start, stop in pairwise((0, *ks)):
            more, who = weights[:, start:stop], index[:, start:stop]
            if encoded.ndim == 1:
                votes = votes.scatter_add(1, encoded[who], more)
            else:
                votes = votes + torch.einsum("qk,qko->qo", more, encoded[who])
            yield votes / weights[:, :stop].sum(1, keepdim=True)

    def tensors(self) -> dict[str, Tensor]:
        return {"features": as_tensor(self._neighbors.rows.stored()), "targets": torch.as_tensor(self._encoded)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        features = tensors["features"].numpy()
        self.n_features_in_ = features.shape[1]
        self.learn(self._rows(features), tensors["targets"].numpy(), self.chosen_)

    @available_if(is_classifier)
    def predict_proba(self, X: Any) -> Array | list[Array]:
        """Shares of the votes [n, classes]; for labels an array [n, 2] each, as scikit-learn's neighbours have them."""
        shares = self.scores(X)
        if self.targets_.kind == "classification":
            return shares
        return [np.stack((1 - share, share), axis=1) for share in shares.T]


def _on_the_sphere(block: Tensor) -> Tensor:
    return F.normalize(block, dim=1)
