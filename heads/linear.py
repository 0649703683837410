"""Linear classifiers trained by gradient descent, many learning rates at once.

The protocol of DINOv2 (Oquab et al. 2023, arXiv 2304.07193) and DINOv3: SGD with momentum, no weight decay, a cosine
to 0, weights from N(0, 0.01), and one head a learning rate, of which the best on validation counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.bank import HeadBank
from heads.contract import HeadError
from heads.norm import BatchNorm, build_norm
from heads.probe import as_array
from heads.rows import WORKING_MEMORY, Rows
from heads.settings import check_positive
from heads.trained import TrainedProbe


@dataclass(eq=False)
class LinearProbe(TrainedProbe):
    """One linear map of features [n, C] a learning rate.

    Args:
        working_memory: Bytes for features; larger matrices are read a batch at a time.
    """

    kind = "linear"

    working_memory: int = WORKING_MEMORY

    def check(self) -> None:
        super().check()
        check_positive("working_memory", self.working_memory)

    def read(self, X: Any) -> "VectorBatches":
        return VectorBatches(X, self.torch_device, self.working_memory)

    def build(self, dim: int, outputs: int, count: int) -> "LinearBank":
        return LinearBank(dim, outputs, count, self.batch_norm)

    def dim_of(self, tensors: Mapping[str, Tensor]) -> int:
        return tensors["weights.0"].shape[1]


class VectorBatches:
    """A matrix of features [n, C], on the device where it fits, read a batch at a time where not."""

    def __init__(self, X: Any, device: torch.device, working_memory: int) -> None:
        matrix = as_array(X)
        if getattr(matrix, "ndim", 0) != 2:
            raise HeadError(f"features have the shape {np.shape(matrix)}; a linear probe takes [n, C]")
        rows = Rows([(matrix, None)], device, working_memory)
        rows.check_finite()
        self.dim = rows.width
        self._array, self._device = matrix, device
        fits = 4 * matrix.size <= working_memory
        self._kept = torch.cat([block for _, block in rows.blocks(torch.float32)]) if fits else None

    def __len__(self) -> int:
        return len(self._array)

    def batch(self, index: Tensor) -> Tensor:
        if self._kept is not None:
            return self._kept[index.to(self._device)]
        return torch.from_numpy(np.asarray(self._array[index.numpy()], np.float32)).to(self._device)


class LinearBank(HeadBank):
    """Linear maps that are computed as one product, after one batch norm.

    Args:
        dim: C.
        outputs: Scores of each.
        count: How many maps; they start equal, so that each is what it would be alone.
        batch_norm: Whether there is a batch norm, and whether it has weights.
    """

    def __init__(self, dim: int, outputs: int, count: int, batch_norm: BatchNorm) -> None:
        super().__init__()
        self.norm = build_norm(dim, batch_norm)
        weight = 0.01 * torch.randn(outputs, dim)
        self.weights = nn.ParameterList(weight.clone() for _ in range(count))
        self.biases = nn.ParameterList(torch.zeros(outputs) for _ in range(count))
        affine = range(count if batch_norm == "affine" else 0)
        self.scales = nn.ParameterList(torch.ones(dim) for _ in affine)
        self.shifts = nn.ParameterList(torch.zeros(dim) for _ in affine)

    def forward(self, batch: Tensor) -> Tensor:
        weight, bias = (torch.cat(parts) for parts in zip(*self._maps(), strict=True))
        scores = torch.addmm(bias, self.norm(batch), weight.T)
        return scores.view(len(batch), len(self.weights), -1).transpose(0, 1)

    def _maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weight [outputs, C] and bias [outputs] of each head, with the scale and shift of its features folded in."""
        maps = list(zip(self.weights, self.biases, strict=True))
        if not self.scales:
            return maps
        affine = zip(maps, self.scales, self.shifts, strict=True)
        return [(weight * scale, bias + weight @ shift) for (weight, bias), scale, shift in affine]

    def head_parameters(self) -> list[list[nn.Parameter]]:
        kinds = [kind for kind in (self.weights, self.biases, self.scales, self.shifts) if kind]
        return [list(head) for head in zip(*kinds, strict=True)]

    def keep(self, index: int) -> None:
        for kind in ("weights", "biases", "scales", "shifts"):
            setattr(self, kind, getattr(self, kind)[index : index + 1])
