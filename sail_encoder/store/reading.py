"""Reading what `sail extract` has left: the index, single grids, and all images as one matrix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike

from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.table import STEP, Array, KeyIndex
from sail_encoder.io.errors import StoreError, UserError, in_one_line
from sail_encoder.io.files import open_regular
from sail_encoder.io.runs import RUN, read_run
from sail_encoder.store.index import INDEX
from sail_encoder.store.npy import map_array, read_header

_COLUMNS = ("path", "file", "row", "grid_height", "grid_width", "image_height", "image_width")


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


class Entries(Sequence[Entry]):
    """The images that have features, in the order of the run; columns, of which entries are made when asked for.

    Args:
        table: The rows of index.parquet that are done.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            return self._entries(rows.start, len(rows)) if rows.step == 1 else [self[row] for row in rows]
        (entry,) = self._entries(range(len(self))[index], 1)
        return entry

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), STEP):
            yield from self._entries(start, STEP)

    def __repr__(self) -> str:
        return f"<{len(self):,} entries>"

    def _entries(self, start: int, count: int) -> list[Entry]:
        columns = (self._table[name].slice(start, count).to_pylist() for name in _COLUMNS)
        return [
            Entry(path, file, row, (nh, nw), (height, width))
            for path, file, row, nh, nw, height, width in zip(*columns, strict=True)
        ]

    def rows_of(self, paths: Sequence[str]) -> Array:
        """The number of each image by its name, -1 where there is none."""
        return self._index.rows(paths)

    @property
    def files(self) -> list[str]:
        """The files in which features are, each once."""
        return self._table["file"].unique().to_pylist()

    @property
    def rows(self) -> Array:
        """int64 [entries], the row of each in its shard, -1 for a file of its own."""
        return self._table["row"].fill_null(-1).to_numpy()

    @cached_property
    def _index(self) -> KeyIndex:
        paths = self._table["path"]
        lists = (paths.slice(start, STEP).to_pylist() for start in range(0, len(self), STEP))
        return KeyIndex(lists, len(self), lambda rows: paths.take(rows).to_pylist())

    def __getstate__(self) -> dict[str, Any]:
        return {"_table": self._table}


class FeatureFolder:
    """A folder that a run of `sail extract` has finished.

    `len(folder)` is the number of images that have features, and `folder["a.jpg"]` are those of one image.

    Args:
        folder: The `--out` of that run.

    Attributes:
        settings: What run.json says of the features.
        spec: What the features are: layers, norm, pool, size, weights (a fingerprint), ...
        entries: The images that have features, in the order of the run.

    Raises:
        StoreError: If there is no finished run in the folder, a table of it is damaged, or shares of it are still to
            be done.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        run = read_run(self.folder)
        if run is None or not (self.folder / INDEX).exists():
            lacks = RUN if run is None else INDEX
            raise StoreError(f"{folder} has no {lacks}; run (or resume) sail extract SOURCE --out {folder} first")
        self.settings: dict[str, Any] = run["settings"]
        self.spec = _read_spec(run, self.folder / RUN)
        self.entries = Entries(self._read_index())

    def _read_index(self) -> Any:
        import pyarrow
        from pyarrow import compute, parquet

        try:
            table = parquet.read_table(self.folder / INDEX, columns=["status", *_COLUMNS])
            pending = compute.sum(compute.equal(table["status"], "pending")).as_py() or 0
            done = table.filter(compute.equal(table["status"], "done")).select(_COLUMNS)
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.folder / INDEX} is damaged ({reason}); run sail extract again") from None
        if pending:
            raise StoreError(
                f"{self.folder} is not finished, {pending:,} of {table.num_rows:,} images are pending; run the shards "
                "that are left, or the same sail extract without --shard"
            )
        return done

    @property
    def layers(self) -> list[int]:
        """The blocks that were stored."""
        return list(self.spec.layers)

    @property
    def is_pooled(self) -> bool:
        """Tells whether there is one vector per image, and no grid."""
        return self.spec.pool != "none"

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, path: str) -> Array:
        return self.read(path)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and int(self.entries.rows_of([path])[0]) >= 0

    def __repr__(self) -> str:
        kind = "vectors" if self.is_pooled else "grids"
        layers = ", ".join(map(str, self.layers))
        return f"FeatureFolder('{self.folder}': {len(self):,} {kind} of {self.spec.model}, layers {layers})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_shards"}

    @cached_property
    def _shards(self) -> dict[str, Array]:
        return {}

    def entry(self, path: str) -> Entry:
        """The entry of an image by its name.

        Raises:
            StoreError: If it has no features.
        """
        row = int(self.entries.rows_of([path])[0])
        if row < 0:
            known = f"such as '{self.entries[0].path}'" if len(self) else "none"
            raise StoreError(f"{self.folder} has no features of '{path}'; there are {len(self):,} images, {known}")
        return self.entries[row]

    def read(self, image: Entry | str, layer: int | None = None, rows: slice | None = None) -> Array:
        """Features of one image at one layer: [nh, nw, C], or [C] where they are pooled.

        Of a grid no more is read than is asked for, and no file stays open.

        Args:
            image: The entry or the name of the image.
            layer: One of `layers`; the last by default.
            rows: Rows of the grid, one beside the other; all by default.

        Raises:
            StoreError: If there is no such image or layer, or the file is missing or damaged.
            UserError: If rows do not lie beside each other, as with a step, or the features are pooled and have none.
        """
        if rows is not None and self.is_pooled:
            raise UserError(f"rows are of grids, but {self.folder} has one vector per image; leave rows out")
        if rows is not None and rows.step not in (None, 1):
            raise UserError(f"rows cannot have a step of {rows.step}; read all between them, and index what you get")
        entry = self.entry(image) if isinstance(image, str) else image
        position = self._position(layer)
        if entry.row is None:
            return self._read_grid(entry, position, rows)
        shard = self._shard(entry.file)
        if entry.row >= len(shard):
            raise StoreError(f"{self.folder / entry.file} has {len(shard):,} rows, not row {entry.row:,}; {_AGAIN}")
        return shard[entry.row][position] if len(self.layers) > 1 else shard[entry.row]

    def _read_grid(self, entry: Entry, position: int, rows: slice | None) -> Array:
        path = self.folder / entry.file
        (nh, nw), several = entry.grid, len(self.layers) > 1
        start, stop, _ = (rows or slice(None)).indices(nh)
        try:
            with open_regular(path) as file:
                shape, dtype = read_header(file)
                if shape[:-1] != (*[len(self.layers)] * several, nh, nw):
                    raise ValueError(f"its shape is {list(shape)}, for a grid of {nh}x{nw}")
                row_values = nw * shape[-1]
                file.seek((position * several * nh + start) * row_values * dtype.itemsize, 1)
                values = np.fromfile(file, dtype, max(0, stop - start) * row_values)
                return values.reshape(-1, nw, shape[-1])[: max(0, stop - start)]
        except FileNotFoundError:
            raise StoreError(f"{path} is missing; {_AGAIN}") from None
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}; {_AGAIN}") from None

    def _shard(self, file: str) -> Array:
        if file not in self._shards:
            try:
                shard = map_array(self.folder / file)
                if shard.ndim != (3 if len(self.layers) > 1 else 2):
                    raise ValueError(f"its shape is {list(shard.shape)}, for rows of vectors")
                self._shards[file] = shard
            except FileNotFoundError:
                raise StoreError(f"{self.folder / file} is missing; {_AGAIN}") from None
            except (OSError, ValueError) as error:
                raise StoreError(f"{self.folder / file} is damaged: {in_one_line(error)}; {_AGAIN}") from None
        return self._shards[file]

    def matrix(
        self, layer: int | None = None, pool: str = "mean", *, dtype: DTypeLike | None = None, rows: slice | None = None
    ) -> Array:
        """All images, or some, as one array [images, C], rows in the order of `entries`.

        Where the run has pooled into one shard, and no type is asked for, this is a memory-mapped view, which cannot be
        written to. Grids are pooled now, in float32, one at a time.

        Args:
            layer: One of `layers`; the last by default.
            pool: How to pool grids: `mean`, `max` or `gem`; pooled features are taken as they are.
            dtype: Type of the values, which are then the caller's own; by default that in which they are stored, or
                float32 where they are pooled now.
            rows: Which images; all by default. Blocks of a folder that is larger than memory are read so.

        Raises:
            StoreError: If there is no such layer, or a file is missing or damaged.
            UserError: If there is no such pooling.
        """
        position, wanted = self._position(layer), rows or slice(None)
        shard = self._only_shard()
        if shard is not None:
            vectors = shard[wanted, position] if len(self.layers) > 1 else shard[wanted]
            # Libraries in C, such as faiss, write to what they are given without asking whether they may.
            return vectors if dtype is None else np.array(vectors, dtype, order="C")
        if not len(self):
            return np.empty((0, 0), dtype or np.float32)
        entries = self.entries if rows is None else self.entries[rows]
        first = self._vector((entries or self.entries)[0], layer, pool)
        matrix = np.empty((len(entries), len(first)), dtype or first.dtype)
        for row, entry in zip(matrix, entries, strict=True):
            row[:] = self._vector(entry, layer, pool)
        return matrix

    def _only_shard(self) -> Array | None:
        """The shard whose rows are the images, if there is a single one."""
        shard = None if self._only_file is None else self._shard(self._only_file)
        return shard if shard is not None and len(shard) == len(self) else None

    @cached_property
    def _only_file(self) -> str | None:
        """File of which the images are the rows, in their order, if there is a single one; looked for once."""
        files = self.entries.files if self.is_pooled else []
        is_in_order = len(files) == 1 and np.array_equal(self.entries.rows, np.arange(len(self)))
        return files[0] if is_in_order else None

    def _vector(self, entry: Entry, layer: int | None, pool: str) -> Array:
        features = self.read(entry, layer)
        return features if self.is_pooled else _pool(features, pool)

    def _position(self, layer: int | None) -> int:
        if layer is None:
            return len(self.layers) - 1
        if layer not in self.layers:
            raise StoreError(f"{self.folder} has no layer {layer}; there is {', '.join(map(str, self.layers))}")
        return self.layers.index(layer)


_AGAIN = "the same sail extract writes it again"


def _read_spec(run: dict[str, Any], path: Path) -> FeatureSpec:
    """Features as run.json describes them; the model is the one that the last report names."""
    reports = run.get("runs")
    last = reports[-1] if isinstance(reports, list) and reports else None
    model = str(last["model"]) if isinstance(last, dict) and "model" in last else "an unknown model"
    try:
        return FeatureSpec.from_json({"model": model, **run["settings"]})
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged, or of no extraction ({error!r}); {_AGAIN}") from None


def _pool(grid: Array, how: str) -> Array:
    """Pools a grid that was stored."""
    import torch

    from sail_encoder.backbones.pooling import pool_grid

    # A copy, since a memory map cannot be written to, of which PyTorch would warn.
    return pool_grid(torch.tensor(grid), how).numpy()
