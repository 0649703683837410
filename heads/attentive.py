"""Attentive probes: learned queries choose which patches count, then a linear classifier.

A mean over patches hides what only some of them know. With one query, heads of attention and projected keys this is
AIM's probe (El-Nouby et al. 2024, arXiv 2401.08541); with many queries and no projected keys it is efficient probing
(Psomas et al. 2025, arXiv 2506.10178).
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heads.bank import HeadBank
from heads.contract import HeadError
from heads.norm import Affine, BatchNorm, build_norm
from heads.pooling import AttentionPool, check_heads, pack_patches
from heads.probe import as_tensor
from heads.recipe import OptimizerName
from heads.settings import check_positive
from heads.trained import TrainedProbe

NormPlace = Literal["patches", "pooled"]
"""What the batch norm sees: the patches, as in AIM's probe, or what was pooled from them, as in efficient probing."""


@dataclass(eq=False)
class AttentiveProbe(TrainedProbe):
    """Pools the grids [nh, nw, C] of images of any size by attention, and classifies.

    Args:
        queries: Learned queries.
        heads: Heads of attention; more than 1 only with `project_keys`.
        project_keys: Whether keys are projected.
        classifier_bias: Whether the classifier has a bias; AIM's has none.
        norm_on: Whether the batch norm sees the patches (AIM) or the pooled vector (efficient probing).
    """

    kind = "attentive"
    takes = "grids"

    learning_rates: float | Sequence[float] = (1e-3,)
    base_batch_size: int = 128
    optimizer: OptimizerName = "adamw"
    warmup: float = 0.1
    batch_norm: BatchNorm = True
    queries: int = 1
    heads: int = 1
    project_keys: bool = True
    classifier_bias: bool = True
    norm_on: NormPlace = "patches"

    def check(self) -> None:
        super().check()
        if self.norm_on not in ("patches", "pooled"):
            raise HeadError(f"norm_on is '{self.norm_on}'; use patches or pooled")
        check_positive("queries", self.queries, whole=True)
        check_positive("heads", self.heads, whole=True)
        check_heads(self.heads, self.project_keys)

    def read(self, X: Any) -> "GridBatches":
        return GridBatches(X, self.torch_device)

    def build(self, dim: int, outputs: int, count: int) -> "AttentiveBank":
        pool = AttentionPool(dim, self.queries, self.heads, self.project_keys)
        classifier = nn.Linear(dim, outputs, bias=self.classifier_bias)
        return AttentiveBank(pool, classifier, count, self.batch_norm, self.norm_on)

    def dim_of(self, tensors: Mapping[str, Tensor]) -> int:
        return tensors["classifiers.0.weight"].shape[1]


class GridBatches:
    """Grids of features [nh, nw, C], of any size each; packed a batch at a time."""

    def __init__(self, grids: Sequence[Any], device: torch.device) -> None:
        shape = tuple(grids[0].shape) if len(grids) else ()
        if len(shape) != 3:
            raise HeadError(f"features of an image have the shape {shape}; an attentive probe takes grids [nh, nw, C]")
        self.dim = shape[-1]
        self._grids, self._device = grids, device

    def __len__(self) -> int:
        return len(self._grids)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        patches, counts = pack_patches([as_tensor(self._grids[place]) for place in index.tolist()])
        if not patches.isfinite().all():
            raise HeadError("the features of an image hold NaN or inf; extract it again or leave it out")
        return patches.to(self._device, torch.float32), counts


class AttentiveBank(HeadBank):
    """Attentive classifiers on the same patches.

    A batch norm of the patches is one for all heads; one of what they have pooled is each head's own.

    Args:
        pool: The first one's pooling.
        classifier: The first one's classifier.
        count: How many; they start equal, so that each is what it would be alone.
        batch_norm: Whether there is a batch norm, and whether it has weights.
        norm_on: What it sees.
    """

    def __init__(
        self,
        pool: AttentionPool,
        classifier: nn.Linear,
        count: int,
        batch_norm: BatchNorm,
        norm_on: NormPlace = "patches",
    ) -> None:
        super().__init__()
        dim = classifier.in_features
        on_patches, on_pooled = (batch_norm if norm_on == place else False for place in ("patches", "pooled"))
        self.norm = build_norm(dim, on_patches)
        self.affines = nn.ModuleList(_copies(Affine(dim) if on_patches == "affine" else nn.Identity(), count))
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)
        self.pools = nn.ModuleList(_copies(pool, count))
        pooled_norm = nn.Sequential(build_norm(dim, on_pooled), Affine(dim) if on_pooled == "affine" else nn.Identity())
        self.pooled_norms = nn.ModuleList(_copies(pooled_norm, count))
        self.classifiers = nn.ModuleList(_copies(classifier, count))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        patches, counts = batch
        patches = self.norm(patches)
        heads = self._heads()
        return torch.stack([classify(norm(pool(affine(patches), counts))) for affine, pool, norm, classify in heads])

    def _heads(self) -> Iterator[tuple[nn.Module, ...]]:
        return zip(self.affines, self.pools, self.pooled_norms, self.classifiers, strict=True)

    def head_parameters(self) -> list[list[nn.Parameter]]:
        return [[parameter for part in head for parameter in part.parameters()] for head in self._heads()]

    def keep(self, index: int) -> None:
        for part in ("affines", "pools", "pooled_norms", "classifiers"):
            setattr(self, part, getattr(self, part)[index : index + 1])


def _copies(module: nn.Module, count: int) -> list[nn.Module]:
    return [module, *(deepcopy(module) for _ in range(count - 1))]
