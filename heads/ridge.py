"""Ridge regression on features: closed form, the whole regularisation path from one decomposition."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sklearn.utils.metaestimators import available_if
from torch import Tensor
from torch.nn import functional as F

from heads.estimator import VectorProbe, binary_as_one_column, is_classifier
from heads.probe import Array
from heads.rows import WORKING_MEMORY, CenteredRows, Rows
from heads.settings import as_values
from heads.targets import TargetSpace, Task

ALPHAS = tuple(10.0**power for power in range(8, -5, -1))


class RidgeProbe(VectorProbe):
    """Least squares with a penalty, an answer in seconds.

    It minimises ||Y - XW - b||² + alpha ||W||² with b unpenalised, as scikit-learn's RidgeClassifier and Ridge do.
    Classes become columns of +1 and -1.

    Args:
        alphas: Penalty, or several to choose from.
        standardize: Whether to bring each feature to deviation 1 first.
        task: `classification` (one class, or several labels) or `regression`.
        refit: Whether the choice is fitted on training and validation set together.
        seed: Which samples are held out where there is no validation set.
        device: Where to compute; `auto` takes a GPU where there is one.
        working_memory: Bytes for features; larger matrices are read in blocks. Four matrices of C x C in float64 come
            on top.

    Attributes:
        coef_: float64 [outputs, C].
        intercept_: float64 [outputs].
        alpha_: The penalty that was chosen.
    """

    kind = "ridge"
    parameter = "alpha"

    _compared: "RidgePath | None" = None
    """The path on which alphas were compared; it serves again where the choice is fitted on the same rows."""

    def __init__(
        self,
        alphas: float | Sequence[float] = ALPHAS,
        standardize: bool = False,
        task: Task = "classification",
        refit: bool = True,
        seed: int = 0,
        device: str = "auto",
        working_memory: int = WORKING_MEMORY,
    ) -> None:
        self.alphas = alphas
        self.standardize = standardize
        self.task = task
        self.refit = refit
        self.seed = seed
        self.device = device
        self.working_memory = working_memory

    def candidates(self) -> list[float]:
        return sorted(as_values("alphas", self.alphas), reverse=True)

    def compare(self, rows: Rows, encoded: Array, values: Sequence[float], held: Rows) -> Iterator[Array]:
        path = self._compared = self._path(rows, encoded)
        return (held.project(*path.solve(alpha)) for alpha in values)

    def learn(self, rows: Rows, encoded: Array, value: float) -> None:
        path, self._compared = self._compared, None
        if path is None or path.rows.rows is not rows:
            path = self._path(rows, encoded)
        self.coef_, self.intercept_ = path.solve(value)
        self.alpha_ = value

    def _path(self, rows: Rows, encoded: Array) -> "RidgePath":
        return RidgePath(rows, Regressands(encoded, self.targets_, rows.device), self.standardize)

    def compute(self, rows: Rows) -> Array:
        return rows.project(self.coef_, self.intercept_)

    @available_if(is_classifier)
    def decision_function(self, X: Any) -> Array:
        """Scores as scikit-learn has them: [n] for two classes, [n, outputs] otherwise."""
        return binary_as_one_column(self.scores(X), self.targets_)

    def tensors(self) -> dict[str, Tensor]:
        return {"coef": torch.from_numpy(self.coef_), "intercept": torch.from_numpy(self.intercept_)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.coef_, self.intercept_ = tensors["coef"].numpy(), tensors["intercept"].numpy()
        self.n_features_in_, self.alpha_ = self.coef_.shape[1], self.chosen_


class Regressands:
    """Targets of ridge, less their mean: numbers, or a column of +1 and -1 for each class or label.

    Columns are made for some rows at a time: of many classes they are larger than the features.

    Args:
        encoded: What `TargetSpace.encode` gives.
        targets: The targets.
        device: Where to make them.

    Attributes:
        mean: float64 [outputs].
    """

    def __init__(self, encoded: Array, targets: TargetSpace, device: torch.device) -> None:
        self.encoded = torch.as_tensor(encoded, device=device)
        self.targets = targets
        if targets.kind == "classification":
            shares = self.encoded.bincount(minlength=targets.width).double() / len(encoded)
        else:
            shares = self.encoded.double().mean(0)
        self.mean = shares if targets.kind == "regression" else 2 * shares - 1

    def __getitem__(self, rows: slice) -> Tensor:
        """float64 [rows, outputs]."""
        block = self.encoded[rows]
        if self.targets.kind == "regression":
            return block.double() - self.mean
        if self.targets.kind == "classification":
            block = F.one_hot(block, self.targets.width)
        return (2 * block.double()).sub_(1 + self.mean)


class RidgePath:
    """The solutions for all penalties, from one eigendecomposition of the smaller of the two Gram matrices.

    With centered features X = U S V' the solution is V S/(S² + alpha) U'Y, so a further penalty costs one product.

    Args:
        rows: Features.
        wanted: What they are to give.
        standardize: Whether to bring each feature to deviation 1 first.
    """

    def __init__(self, rows: Rows, wanted: Regressands, standardize: bool = False) -> None:
        self.rows = CenteredRows(rows, standardize)
        self.offset = wanted.mean
        decompose = self._by_features if len(rows) >= rows.width else self._by_samples
        self.basis, self.coordinates, self.spectrum = decompose(wanted)

    def _by_features(self, wanted: Regressands) -> tuple[Tensor, Tensor, Tensor]:
        """From X'X [C, C], summed up block by block."""
        width, outputs = self.rows.rows.width, len(wanted.mean)
        gram = torch.zeros(width, width, dtype=torch.float64, device=wanted.mean.device)
        cross = torch.zeros(width, outputs, dtype=torch.float64, device=wanted.mean.device)
        for where, block in self.rows.blocks(torch.float64, outputs):
            gram.addmm_(block.T, block)
            cross.addmm_(block.T, wanted[where])
        spectrum, vectors = torch.linalg.eigh(gram)
        return vectors, vectors.T @ cross, spectrum.clamp_min(0)

    def _by_samples(self, wanted: Regressands) -> tuple[Tensor, Tensor, Tensor]:
        """From XX' [n, n]: there are fewer samples than features, so all of them are smaller than X'X."""
        matrix = torch.cat([block for _, block in self.rows.blocks(torch.float64)])
        spectrum, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return matrix.T @ vectors, vectors.T @ wanted[slice(None)], spectrum.clamp_min(0)

    def solve(self, alpha: float) -> tuple[Array, Array]:
        """Coefficients [outputs, C] and intercepts [outputs] for one penalty."""
        coef = (self.basis @ (self.coordinates / (self.spectrum + alpha)[:, None])).T / self.rows.scale
        intercept = self.offset - coef @ self.rows.mean
        return coef.contiguous().cpu().numpy(), intercept.cpu().numpy()
