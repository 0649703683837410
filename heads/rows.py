"""Matrices of features, read a block of rows at a time, so that none has to fit memory."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.contract import HeadError

Array = np.ndarray[Any, Any]

WORKING_MEMORY = 2**30
"""Bytes that a head uses for features by default; larger matrices are read in blocks."""

_ROWS_IN_CACHE = 8192
"""Rows of a block of what is kept in memory: so many outputs stay in a processor's cache between two products."""


class Selection:
    """Some rows of a matrix, each read when it is needed, where indexing would copy all of them at once.

    Args:
        matrix: [n, C], which may be memory-mapped.
        index: Which rows, in the order wanted.
    """

    def __init__(self, matrix: Array, index: Array) -> None:
        self.matrix, self.index = matrix, index
        self.dtype, self.ndim = matrix.dtype, matrix.ndim
        self.shape = (len(index), *matrix.shape[1:])
        self.size = prod(self.shape)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> Array:
        return self.matrix[self.index[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)


class Rows:
    """Rows of one or several matrices, one after the other.

    Args:
        parts: Matrices [n, C], which may be memory-mapped or a `Selection`, each with the indices of its rows, or None
            for all.
        device: Where blocks are to be.
        working_memory: Bytes that may be used for rows.

    Attributes:
        width: C.
        precision: float64 where a matrix is float64 or of whole numbers, float32 otherwise.
    """

    def __init__(self, parts: Sequence[tuple[Array, Array | None]], device: torch.device, working_memory: int) -> None:
        self.parts = list(parts)
        self.device = device
        self.working_memory = working_memory
        self.width = parts[0][0].shape[1]
        small = all(array.dtype in (np.float16, np.float32) for array, _ in parts)
        self.precision = torch.float32 if small else torch.float64

    def __len__(self) -> int:
        return sum(len(array) if index is None else len(index) for array, index in self.parts)

    def __add__(self, other: "Rows") -> "Rows":
        return Rows([*self.parts, *other.parts], self.device, self.working_memory)

    def take(self, index: Array) -> "Rows":
        """Some rows of a single matrix."""
        ((array, mine),) = self.parts
        return Rows([(array, index if mine is None else mine[index])], self.device, self.working_memory)

    def stored(self) -> Array:
        """All rows [n, C] in the type that they are stored in; not copied where they are one whole matrix."""
        array, index = self.parts[0]
        if len(self.parts) == 1 and index is None:
            return np.asarray(array)
        whole = np.empty((len(self), self.width), np.result_type(*(array.dtype for array, _ in self.parts)))
        for where, block in self.blocks(self.precision):
            whole[where] = block.cpu().numpy()
        return whole

    def rows_per_block(self, bytes_per_row: int) -> int:
        """Number of rows that the working memory holds."""
        return max(1, self.working_memory // max(1, bytes_per_row))

    def blocks(self, dtype: torch.dtype, rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, as fresh tensors.

        Args:
            dtype: Their type.
            rows: Rows of a block at most; by default what a quarter of the working memory holds.

        Yields:
            Which rows, and these [rows, C].
        """
        size = rows or self.rows_per_block(4 * self.width * dtype.itemsize)
        numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
        done = 0
        for array, index in self.parts:
            count = len(array) if index is None else len(index)
            for start in range(0, count, size):
                stop = min(start + size, count)
                block = array[start:stop] if index is None else array[index[start:stop]]
                tensor = torch.from_numpy(np.array(block, numpy_dtype)).to(self.device, dtype)
                yield slice(done + start, done + stop), tensor
            done += count

    def check_finite(self) -> None:
        """Makes sure that every value is a number.

        Raises:
            HeadError: If one is not.
        """
        for where, block in self.blocks(self.precision):
            sums = block.sum(1)
            if not sums.isfinite().all() and not (finite := block.isfinite().all(1)).all():
                row = where.start + int(finite.logical_not().nonzero()[0, 0])
                raise HeadError(f"row {row} of the features holds NaN or inf; extract it again or leave it out")

    def project(self, coef: Array, intercept: Array) -> Array:
        """A linear map of all rows: float64 [n, outputs] from `coef` [outputs, C] and `intercept` [outputs]."""
        weight, bias = (torch.as_tensor(array, dtype=torch.float64, device=self.device) for array in (coef, intercept))
        projected = np.empty((len(self), len(weight)))
        for where, block in self.blocks(torch.float64):
            projected[where] = torch.addmm(bias, block, weight.T).cpu().numpy()
        return projected

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each column, float64 [C], in two passes."""
        mean = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        for _, block in self.blocks(torch.float64):
            mean += block.sum(0) / len(self)
        variance = torch.zeros_like(mean)
        for _, block in self.blocks(torch.float64):
            variance += (block - mean).square().sum(0) / len(self)
        return mean, variance


class PreparedRows:
    """Rows that each go through the same function; kept in memory where they fit, made again in each pass where not.

    Args:
        rows: The rows.
        prepare: Takes a fresh block [rows, C], and may change it.
    """

    def __init__(self, rows: Rows, prepare: Callable[[Tensor], Tensor]) -> None:
        self.rows = rows
        self.prepare = prepare
        fits = len(rows) * rows.width * rows.precision.itemsize <= rows.working_memory
        self._kept = self._keep() if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def _keep(self) -> Tensor:
        kept = torch.empty(len(self), self.rows.width, dtype=self.rows.precision, device=self.rows.device)
        for where, block in self._make(kept.dtype):
            kept[where] = block
        return kept

    def _make(self, dtype: torch.dtype, rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        for where, block in self.rows.blocks(dtype, rows):
            yield where, self.prepare(block)

    def blocks(self, dtype: torch.dtype, outputs: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order.

        Args:
            dtype: Type to compute in.
            outputs: Columns that are computed from each row, which take memory too.

        Yields:
            Which rows, and these [rows, C].
        """
        size = self.rows.rows_per_block(4 * (self.rows.width + outputs) * dtype.itemsize)
        if self._kept is None:
            yield from self._make(dtype, size)
            return
        if self.rows.device.type == "cpu":
            size = min(size, _ROWS_IN_CACHE)
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self._kept[where].to(dtype)

    def sample(self, count: int) -> Tensor:
        """So many rows or all there are, evenly spread, float32 [n, C]."""
        count = min(count, len(self))
        chosen = torch.arange(count, device=self.rows.device) * len(self) // count
        if self._kept is not None:
            return self._kept[chosen].float()
        parts = []
        for where, block in self._make(torch.float32):
            inside = chosen[(chosen >= where.start) & (chosen < where.stop)]
            parts.append(block[inside - where.start])
        return torch.cat(parts)


class CenteredRows(PreparedRows):
    """Rows minus their mean, over a scale.

    Args:
        rows: The rows.
        standardize: Whether the scale is the standard deviation of each column, and not 1.

    Attributes:
        mean: [C], float64.
        scale: [C], float64; 1 where a column is constant.
    """

    def __init__(self, rows: Rows, standardize: bool = False) -> None:
        self.mean, variance = rows.moments()
        constant = variance <= 1e-12 * self.mean.square()
        scale = variance.sqrt() if standardize else torch.ones_like(self.mean)
        self.scale = scale.where(~constant, torch.ones_like(scale))
        super().__init__(rows, self._center)

    def _center(self, block: Tensor) -> Tensor:
        return block.sub_(self.mean.to(block.dtype)).div_(self.scale.to(block.dtype))
