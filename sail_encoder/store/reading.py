"""Reading what `sail extract` has left: the index, single grids, and all images as one matrix."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.decoding import Array
from sail_encoder.io.errors import StoreError
from sail_encoder.store.run_file import read_run


@dataclass(frozen=True)
class Entry:
    """One image of a folder of features.

    Attributes:
        path: The image's name, relative to the source.
        file: Where its features are.
        row: Its row in a shard; None for a file of its own.
        grid: (nh, nw).
        image_size: (height, width) of the original in pixels.
    """

    path: str
    file: str
    row: int | None
    grid: tuple[int, int]
    image_size: tuple[int, int]


class FeatureFolder:
    """A folder that a run of `sail extract` has finished.

    Args:
        folder: The `--out` of that run.

    Attributes:
        settings: What run.json says of the features.
        spec: What the features are: layers, norm, pool, size, weights (a fingerprint), ...
        entries: The images that have features, in the order of the run.

    Raises:
        StoreError: If there is no finished run in the folder, or shards of it are still to be done.
    """

    def __init__(self, folder: str | Path) -> None:
        from pyarrow import parquet

        self.folder = Path(folder)
        run = read_run(self.folder)
        if run is None or not (self.folder / "index.parquet").exists():
            lacks = "run.json" if run is None else "index.parquet"
            raise StoreError(f"{folder} has no {lacks}; run (or resume) sail extract SOURCE --out {folder} first")
        self.settings: dict[str, Any] = run["settings"]
        model = run["runs"][-1].get("model", "") if run.get("runs") else ""
        self.spec = FeatureSpec.from_json({"model": model, **self.settings})
        rows = parquet.read_table(self.folder / "index.parquet").to_pylist()
        pending = sum(row["status"] == "pending" for row in rows)
        if pending:
            raise StoreError(
                f"{folder} is not finished, {pending:,} of {len(rows):,} images are pending; run the shards that are "
                "left, or the same sail extract without --shard"
            )
        self.entries = [
            Entry(
                row["path"],
                row["file"],
                row["row"],
                (row["grid_height"], row["grid_width"]),
                (row["image_height"], row["image_width"]),
            )
            for row in rows
            if row["status"] == "done"
        ]

    @property
    def layers(self) -> list[int]:
        """The blocks that were stored."""
        return list(self.spec.layers)

    @property
    def is_pooled(self) -> bool:
        """Whether there is one vector an image, and no grid."""
        return self.spec.pool != "none"

    @cached_property
    def _shards(self) -> dict[str, Array]:
        files = {entry.file for entry in self.entries if entry.row is not None}
        return {file: np.load(self.folder / file, mmap_mode="r") for file in files}

    def read(self, entry: Entry, layer: int | None = None) -> Array:
        """Features of one image at one layer: [nh, nw, C], or [C] where they are pooled; mapped, not read, until used.

        Args:
            entry: The image.
            layer: One of `layers`; the last by default.
        """
        position = self._position(layer)
        if entry.row is not None:
            whole = self._shards[entry.file][entry.row]
        else:
            whole = np.load(self.folder / entry.file, mmap_mode="r")
        return whole[position] if len(self.layers) > 1 else whole

    def matrix(self, layer: int | None = None, pool: str = "mean") -> Array:
        """All images as one array [images, C], rows in the order of `entries`.

        Where the run has pooled into one shard, this is a memory-mapped view; grids are pooled now, in float32.

        Args:
            layer: One of `layers`; the last by default.
            pool: How to pool grids: `mean`, `max` or `gem`; pooled features are taken as they are.

        Raises:
            UserError: If there is no such layer or pooling.
        """
        position = self._position(layer)
        if self.is_pooled and len(self._shards) == 1 and self._rows_in_order():
            shard = next(iter(self._shards.values()))
            return shard[:, position] if len(self.layers) > 1 else shard
        return np.stack(list(self._vectors(layer, pool)))

    def _rows_in_order(self) -> bool:
        rows = [entry.row for entry in self.entries]
        return rows == list(range(len(next(iter(self._shards.values())))))

    def _vectors(self, layer: int | None, pool: str) -> Iterator[Array]:
        for entry in self.entries:
            features = self.read(entry, layer)
            yield features if self.is_pooled else _pool(features, pool)

    def _position(self, layer: int | None) -> int:
        if layer is None:
            return len(self.layers) - 1
        if layer not in self.layers:
            raise StoreError(f"{self.folder} has no layer {layer}; there is {', '.join(map(str, self.layers))}")
        return self.layers.index(layer)


def _pool(grid: Array, how: str) -> Array:
    """Pools a grid that was stored."""
    import torch

    from sail_encoder.backbones.pooling import pool_grid

    # A copy, since a memory map cannot be written to, of which PyTorch would warn.
    return pool_grid(torch.tensor(grid), how).numpy()
