"""Logistic regression on features: L-BFGS in float64, many penalties with warm starts."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from torch import Tensor
from torch.nn import functional as F

from heads.contract import HeadError
from heads.estimator import VectorProbe, binary_as_one_column, is_classifier
from heads.probe import Array
from heads.rows import WORKING_MEMORY, CenteredRows, Rows
from heads.settings import as_values, check_at_least_zero, check_positive
from heads.targets import Task

PENALTIES = tuple(float(c) for c in 10.0 ** np.linspace(-6, 5, 45))
"""Values of C that DINOv2 and DINOv3 compare."""

SAMPLE = 4096
"""Rows at most from which the curvature of the loss is estimated; they decide the number of steps, not where these
lead."""

_PAIRS = 20
"""Steps that L-BFGS remembers, each by two copies of the coefficients."""

ROUGH = 1e-6
"""Smallest tolerance of steps with float32 products; below it their rounding errors hide whether a step helps."""


_OUT_OF_STEPS = 1
"""What SciPy's L-BFGS gives as status when it ends at a limit."""


class LogisticProbe(VectorProbe):
    """Logistic regression with an L2 penalty.

    It minimises ||W||²/2 + C * (sum of the losses) with the intercept unpenalised, as scikit-learn's
    LogisticRegression does: softmax over three classes or more, one sigmoid for two, a sigmoid each for labels.
    Weights, sums and steps are float64. Where features are float32 or float16, products are float32 in most steps, and
    float64 in the last.

    Args:
        C: Inverse penalty, or several to choose from.
        max_iter: Steps for each of them at most; a fit that ends there gives scikit-learn's ConvergenceWarning.
        tol: A fit ends when a step lowers the objective by less than this share.
        standardize: Whether to bring each feature to deviation 1 first.
        task: `classification` (one class, or several labels).
        refit: Whether the choice is fitted on training and validation set together.
        seed: Which samples are held out where there is no validation set.
        device: Where to compute; `auto` takes a GPU where there is one.
        working_memory: Bytes for features; larger matrices are read in blocks. Four matrices of C x C, and 40 copies
            of the coefficients from which L-BFGS knows the curvature, all float64, come on top.

    Attributes:
        coef_: float64 [outputs, C]; one output where there are two classes.
        intercept_: float64 [outputs].
        C_: The inverse penalty that was chosen.
        n_iter_: Steps of the last fit.
    """

    kind = "logistic"
    parameter = "C"

    def __init__(
        self,
        C: float | Sequence[float] = PENALTIES,
        max_iter: int = 1000,
        tol: float = 1e-9,
        standardize: bool = False,
        task: Task = "classification",
        refit: bool = True,
        seed: int = 0,
        device: str = "auto",
        working_memory: int = WORKING_MEMORY,
    ) -> None:
        self.C = C
        self.max_iter = max_iter
        self.tol = tol
        self.standardize = standardize
        self.task = task
        self.refit = refit
        self.seed = seed
        self.device = device
        self.working_memory = working_memory

    def check(self) -> None:
        super().check()
        if self.task != "classification":
            raise HeadError(f"logistic regression has no task '{self.task}'; use ridge, knn or linear for numbers")
        check_positive("max_iter", self.max_iter, whole=True)
        check_at_least_zero("tol", self.tol)

    def candidates(self) -> list[float]:
        return sorted(as_values("C", self.C))

    def compare(self, rows: Rows, encoded: Array, values: Sequence[float], held: Rows) -> Iterator[Array]:
        solver = self._solver(rows, encoded)
        for value in values:
            # The choice among penalties does not need the last digits.
            coef, intercept = solver.solve(value, self.max_iter, max(self.tol, ROUGH))
            yield self._per_class(held.project(coef, intercept))

    def learn(self, rows: Rows, encoded: Array, value: float) -> None:
        solver = self._solver(rows, encoded)
        self.coef_, self.intercept_ = solver.solve(value, self.max_iter, self.tol)
        self.C_, self.n_iter_ = value, solver.steps

    def _solver(self, rows: Rows, encoded: Array) -> "LogisticSolver":
        binary = self.targets_.kind == "classification" and self.targets_.width == 2
        return LogisticSolver(rows, encoded[:, None] if binary else encoded, self.targets_.width, self.standardize)

    def _per_class(self, logits: Array) -> Array:
        """Scores [n, outputs] of every class, also where one sigmoid stands for two."""
        both = self.targets_.kind == "classification" and logits.shape[1] == 1
        return np.concatenate((-logits, logits), 1) if both else logits

    def compute(self, rows: Rows) -> Array:
        return self._per_class(rows.project(self.coef_, self.intercept_))

    @available_if(is_classifier)
    def decision_function(self, X: Any) -> Array:
        """Scores as scikit-learn has them: [n] for two classes, [n, outputs] otherwise."""
        return binary_as_one_column(self.scores(X), self.targets_)

    @available_if(is_classifier)
    def predict_proba(self, X: Any) -> Array:
        """Probabilities [n, classes], or [n, labels]."""
        scores = self.scores(X)
        if self.targets_.kind == "classification" and self.targets_.width > 2:
            return softmax(scores, axis=1)
        return expit(scores)

    def tensors(self) -> dict[str, Tensor]:
        return {"coef": torch.from_numpy(self.coef_), "intercept": torch.from_numpy(self.intercept_)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.coef_, self.intercept_ = tensors["coef"].numpy(), tensors["intercept"].numpy()
        self.n_features_in_, self.C_ = self.coef_.shape[1], self.chosen_


class LogisticSolver:
    """Minimises the objective for one penalty after the other, each from where the last one ended.

    SciPy's L-BFGS takes the steps, in coordinates in which the curvature is about the same in all directions: features
    have eigenvalues that differ by factors of a million, which costs hundreds of steps in their own coordinates. The
    curvature of the loss is close to (X'X/n) times a number that says how certain the predictions are, so one
    eigendecomposition serves all classes and penalties.

    Args:
        rows: Features.
        encoded: Indices of classes [n], or zeros and ones [n, outputs].
        width: Number of classes or labels.
        standardize: Whether to bring each feature to deviation 1 first.

    Attributes:
        steps: How many the last penalty took.
    """

    def __init__(self, rows: Rows, encoded: Array, width: int, standardize: bool = False) -> None:
        self.rows = CenteredRows(rows, standardize)
        self.targets = torch.as_tensor(encoded, device=rows.device)
        self.outputs = width if encoded.ndim == 1 else encoded.shape[1]
        self.device, self.precision = rows.device, rows.precision
        # There are two of them for a moment. Fewer rows than directions would leave some without a variance.
        enough = max(rows.width, min(SAMPLE, rows.rows_per_block(4 * 8 * rows.width)))
        few = len(rows) <= enough
        everything = (block for _, block in self.rows.blocks(torch.float64))
        sample = torch.cat(list(everything)) if few else self.rows.sample(enough).double()
        self.spectrum, self.basis = spectrum_of(sample, spanned=few)
        self.sample = sample @ self.basis
        self.turned = self.sample if few else None
        self.weight = torch.zeros(self.outputs, len(self.spectrum), dtype=torch.float64, device=rows.device)
        self.bias = torch.zeros(self.outputs, dtype=torch.float64, device=rows.device)
        self.steps = 0

    def solve(self, C: float, max_iter: int, tol: float) -> tuple[Array, Array]:
        """Coefficients [outputs, C] and intercepts [outputs] for one inverse penalty.

        Args:
            C: The inverse penalty.
            max_iter: Steps at most; a ConvergenceWarning says if these were not enough.
            tol: The fit ends when a step lowers the objective by less than this share.
        """
        self.steps, converged = 0, False
        phases = [(torch.float32, max(tol, ROUGH))] if self.precision == torch.float32 else []
        if self.precision == torch.float64 or tol < ROUGH:
            phases.append((torch.float64, tol))
        for precision, enough in phases:
            converged = self.steps < max_iter and self._descend(C, max_iter - self.steps, enough, precision)
        if not converged:
            message = f"logistic regression with C={C:g} ended at max_iter={max_iter} before it converged; raise it"
            warnings.warn(message, ConvergenceWarning, stacklevel=4)
        coef = self.weight @ self.basis.T / self.rows.scale
        return coef.cpu().numpy(), (self.bias - coef @ self.rows.mean).cpu().numpy()

    def _descend(self, C: float, max_iter: int, tol: float, precision: torch.dtype) -> bool:
        """Takes steps until they lower the objective by a share of less than `tol`; returns whether they did."""
        penalty = 1 / (C * len(self.rows))
        spread = self._uncertainty()
        scale = torch.cat((spread * self.spectrum + penalty, spread[None] + 1e-12)).rsqrt()

        def unpack(flat: Array) -> tuple[Tensor, Tensor]:
            both = torch.from_numpy(flat).to(self.device).view(self.outputs, -1) * scale
            return both[:, :-1], both[:, -1]

        def objective(flat: Array) -> tuple[float, Array]:
            weight, bias = unpack(flat)
            loss, weight_slope, bias_slope = self.evaluate(weight, bias, precision)
            slope = torch.cat((weight_slope + penalty * weight, bias_slope[:, None]), 1) * scale
            return loss + penalty / 2 * float(weight.square().sum()), slope.cpu().numpy().ravel()

        start = (torch.cat((self.weight, self.bias[:, None]), 1) / scale).cpu().numpy().ravel()
        options = {"maxiter": max_iter, "maxfun": 100 * max_iter, "maxcor": _PAIRS, "ftol": 0.0, "gtol": 0.0}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options, callback=_until_flat(tol))
        self.weight, self.bias = unpack(found.x)
        self.steps += int(found.nit)
        return bool(found.status != _OUT_OF_STEPS)

    def evaluate(self, weight: Tensor, bias: Tensor, precision: torch.dtype) -> tuple[float, Tensor, Tensor]:
        """Mean loss, and its slopes by weight [outputs, directions] and bias [outputs], all summed in float64."""
        loss = torch.zeros((), dtype=torch.float64, device=weight.device)
        turned = (weight if self.turned is not None else weight @ self.basis.T).to(precision)
        weight_slope, bias_slope = torch.zeros_like(turned, dtype=torch.float64), torch.zeros_like(bias)
        bias = bias.to(precision)
        for where, block in self._blocks(precision):
            more, slope = _loss(torch.addmm(bias, block, turned.T), self.targets[where])
            loss += more
            weight_slope += slope.T @ block
            bias_slope += slope.sum(0, dtype=torch.float64)
        weight_slope = weight_slope if self.turned is not None else weight_slope @ self.basis
        count = len(self.rows)
        return float(loss) / count, weight_slope / count, bias_slope / count

    def _blocks(self, precision: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Features as they are, or, where these are few, already in the coordinates of the descent."""
        if self.turned is None:
            yield from self.rows.blocks(precision, self.outputs)
        else:
            yield slice(0, len(self.turned)), self.turned.to(precision)

    def _uncertainty(self) -> Tensor:
        """Mean of p(1 - p) over samples and outputs, where the last penalty ended."""
        logits = self.sample @ self.weight.T + self.bias
        shares = logits.softmax(1) if self.targets.ndim == 1 else logits.sigmoid()
        return (shares * (1 - shares)).mean()


def spectrum_of(sample: Tensor, spanned: bool) -> tuple[Tensor, Tensor]:
    """Variances [r] and directions [C, r] of centered rows [n, C].

    Args:
        sample: The rows.
        spanned: Whether the directions that n < C rows span are enough, because there are no other rows.
    """
    count, width = sample.shape
    if count >= width or not spanned:
        spectrum, basis = torch.linalg.eigh(sample.T @ sample / count)
        return spectrum.clamp_min(0), basis
    spectrum, vectors = torch.linalg.eigh(sample @ sample.T / count)
    kept = spectrum > 1e-14 * spectrum[-1]
    spectrum = spectrum[kept]
    return spectrum, sample.T @ vectors[:, kept] / (count * spectrum).sqrt()


def _loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses in float64, and their slopes by the logits [n, outputs]."""
    if targets.ndim == 1:
        shares = F.log_softmax(logits, 1)
        loss = -shares.gather(1, targets[:, None]).sum(dtype=torch.float64)
        slope = shares.exp_()
        slope[torch.arange(len(targets), device=targets.device), targets] -= 1
        return loss, slope
    wanted = targets.to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return each.sum(dtype=torch.float64), logits.sigmoid() - wanted


def _until_flat(tol: float) -> Any:
    """A callback for SciPy that ends the descent when two steps in a row lower the objective by too little."""
    last, flat = np.inf, 0

    def watch(intermediate_result: OptimizeResult) -> None:
        nonlocal last, flat
        value = intermediate_result.fun
        flat = flat + 1 if last - value <= tol * abs(value) else 0
        last = value
        if flat == 2:
            raise StopIteration

    return watch
