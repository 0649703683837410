"""Weight files: safetensors or PyTorch pickles, sharded or not, read tensor by tensor.

Nothing is loaded before it is asked for, and pickles are read with `weights_only=True`, so a file cannot run code.
"""

import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.io.files import StrPath, read_json
from sail_encoder.io.quantised import refuse_quantised_tensors

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class TensorInfo:
    """Description of a stored tensor, known without reading it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class _Reader(Protocol):
    """Tensors of one open file."""

    def info(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]: ...

    def read(self, key: str, rows: list[int] | None) -> Tensor: ...


class WeightFiles:
    """The tensors of a checkpoint folder.

    Args:
        folder: Where the weight files are, under the names that transformers gives them.
        prefixes: What the names of the tensors begin with that are wanted. Of a sharded checkpoint, files without any
            of them are not opened and may be missing.

    Raises:
        CheckpointError: If there are none, one is missing or damaged, or they are quantised.
    """

    def __init__(self, folder: Path, prefixes: tuple[str, ...] = ("",)) -> None:
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        for file in _list_files(folder, prefixes):
            with _open(file) as reader:
                for key, (shape, dtype) in reader.info().items():
                    if key.startswith(prefixes):
                        self.tensors[key] = TensorInfo(file, shape, dtype)
        refuse_quantised_tensors({key: info.dtype for key, info in self.tensors.items()}, str(folder))

    def read(self, keys: Iterable[str], rows: dict[str, list[int]] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Reads tensors one after the other, file by file; they lie on the CPU as stored.

        Args:
            keys: Which tensors.
            rows: For some keys, the rows to read in place of the whole tensor.

        Yields:
            Key and tensor.

        Raises:
            CheckpointError: If one holds NaN or infinity.
        """
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.tensors[key].file, []).append(key)
        for file, wanted in by_file.items():
            with _open(file) as reader:
                for key in wanted:
                    tensor = reader.read(key, (rows or {}).get(key))
                    if not is_finite(tensor):
                        raise _not_finite(key, str(file))
                    yield key, tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; integers, and what is on no device, count as such.

    Sums keep both, and need no memory for a mask.
    """
    if not tensor.is_floating_point() or tensor.is_meta or tensor.dtype.itemsize < 2:
        return True
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def require_finite(tensors: Mapping[str, Tensor], where: StrPath) -> None:
    """Makes sure that weights which a library has read hold neither NaN nor infinity.

    Args:
        tensors: Weights by name, such as the `state_dict` of a model.
        where: File, folder or name on the Hub that they were read from.

    Raises:
        CheckpointError: If one does; it names the tensor, and in a folder the file.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise _not_finite(name, _file_with(name, Path(where)))


def _file_with(name: str, place: Path) -> str:
    """The file of a folder with a tensor, whatever a whole model has before its name; the place itself elsewhere."""
    stored = WeightFiles(place).tensors if place.is_dir() else {}
    return str(next((info.file for key, info in stored.items() if key.endswith(name) or name.endswith(key)), place))


def _not_finite(name: str, where: str) -> CheckpointError:
    return CheckpointError(f"{where}: {name} holds NaN or infinity; download it again, or go back to an earlier one")


def shards_with(index: Path, prefixes: tuple[str, ...]) -> list[str]:
    """Names of the files that an index lists for tensors whose names begin with one of these prefixes.

    Raises:
        CheckpointError: If it is no index, or names a file outside its folder.
    """
    content = _read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{index} is no index of weight files: it has no weight_map; download it again")
    outside = next((file for file in files.values() if file != Path(file).name), None)
    if outside is not None:
        raise CheckpointError(f"{index} names {outside}, which is not a file beside it; get it where it is whole")
    return sorted({file for key, file in files.items() if key.startswith(prefixes)})


def _list_files(folder: Path, prefixes: tuple[str, ...]) -> list[Path]:
    for name in INDEX_NAMES:
        if (folder / name).is_file():
            shards = shards_with(folder / name, prefixes)
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise CheckpointError(
                    f"{folder} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}; get it again"
                )
            return [folder / shard for shard in shards]
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(f"{folder} has no weights; expected {', '.join(FILE_NAMES)} or their sharded form")


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError as error:
        raise CheckpointError(f"{error}; download it again") from None


def _open(file: Path) -> AbstractContextManager[_Reader]:
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)


@contextmanager
def _open_safetensors(file: Path) -> Iterator[_Reader]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield _SafetensorsReader(opened)
    except SafetensorError as error:
        raise _damaged(file, error) from None


class _SafetensorsReader:
    def __init__(self, opened: Any) -> None:
        self.opened = opened

    def info(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {key: self._shape_and_dtype(key) for key in self.opened.keys()}  # noqa: SIM118

    def _shape_and_dtype(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        part = self.opened.get_slice(key)
        shape = tuple(part.get_shape())
        # An empty slice carries the dtype without touching the values; a single value has no slices.
        return shape, (part[:0] if shape else self.opened.get_tensor(key)).dtype

    def read(self, key: str, rows: list[int] | None) -> Tensor:
        if rows is None:
            return self.opened.get_tensor(key)
        part = self.opened.get_slice(key)
        return torch.cat([part[row : row + 1] for row in rows])


@contextmanager
def _open_pickle(file: Path) -> Iterator[_Reader]:
    try:
        # Only the zip format of torch.save, which starts like any zip file, can be mapped into memory.
        with file.open("rb") as head:
            mmap = head.read(2) == b"PK"
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} holds objects other than tensors and is not opened; convert it to safetensors where it came from"
        ) from None
    # A file that is cut off ends the unpickler at any point of its own.
    except Exception as error:
        raise _damaged(file, error) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        within = (
            " ".join(f"'{key}'" for key in state if isinstance(state[key], dict)) if isinstance(state, dict) else ""
        )
        hint = f"save what is under {within} alone" if within else "save the state_dict of a model"
        raise CheckpointError(f"{file} does not hold tensors by their names; {hint}")
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{file} does not hold tensors by their names; save the state_dict of a model")
    yield _PickleReader(state)


class _PickleReader:
    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def info(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in self.state.items()}

    def read(self, key: str, rows: list[int] | None) -> Tensor:
        return self.state[key] if rows is None else self.state[key][rows]


def _damaged(file: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
    return CheckpointError(
        f"{file} ({file.stat().st_size} bytes) is damaged or incomplete, download it again: {reason}"
    )
