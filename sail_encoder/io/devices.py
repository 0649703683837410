"""Devices and precisions; torch is imported only to see what this machine has."""

import os
import re
import time
from typing import TYPE_CHECKING

from sail_encoder.io.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What errors say that are no `torch.OutOfMemoryError`."""

MAX_READERS = 16

_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?")


def check_device(device: str) -> None:
    """Makes sure that a device is written rightly, whether or not this machine has it.

    Raises:
        UserError: If it is not.
    """
    if not _DEVICE.fullmatch(device):
        raise UserError(f"device '{device}' is not understood; use auto, cpu, cuda, cuda:0 or mps")


def split_devices(devices: str) -> list[str]:
    """Reads the names of devices, separated by commas.

    Raises:
        UserError: If one is not written rightly.
    """
    names = [device.strip() for device in devices.split(",")]
    for name in names:
        check_device(name)
    return names


def choose_device(device: "str | torch.device") -> "torch.device":
    """Reads a device; `auto` is a GPU where there is one.

    Raises:
        UserError: If the device is unknown or not on this machine.
    """
    import torch

    _limit_threads()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    if isinstance(device, str):
        check_device(device)
    chosen = torch.device(device)
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise UserError(f"device '{device}' is not here: PyTorch sees {count} CUDA devices; see sail doctor")
    elif chosen.type == "mps" and not _has_mps():
        raise UserError("device 'mps' is not here; use auto or cpu")
    return chosen


def send(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copies a tensor from the host to a device; a GPU goes on working meanwhile.

    What is made right on a GPU from a Python list lets the host wait until the GPU has done all before.
    """
    # Elsewhere than on CUDA nothing says when such a copy has arrived.
    return tensor.to(device, non_blocking=device.type == "cuda")


def choose_dtype(dtype: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
    """Reads a precision; `auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        UserError: If it is none of `DTYPES`.
    """
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype '{name}' is unknown; use auto, {', '.join(DTYPES)}")
    precision: torch.dtype = getattr(torch, name)
    return precision


def list_devices(devices: str) -> "list[torch.device]":
    """Reads devices separated by commas; `auto` is every CUDA GPU, or else what `choose_device` takes."""
    import torch

    if devices == "auto" and torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [choose_device(device) for device in split_devices(devices)]


_SMALL_PRODUCT, _SLOW_SECONDS = 512, 0.1
"""Side of the matrices that are tried first, and from which time on no larger ones are."""


def measure_matrix_rate(device: "torch.device", dtype: "torch.dtype", size: int | None = None) -> float:
    """Floating-point operations a second of a large matrix product, the best of several.

    One second is spent on repetitions, and the product is a small one where a processor has no units for the type, as
    many have none for bfloat16.
    """
    import torch

    def seconds_of(size: int) -> float:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        start = time.perf_counter()
        float((left @ right)[0, 0])
        return time.perf_counter() - start

    begun = time.perf_counter()
    if size is None:
        seconds_of(_SMALL_PRODUCT)
        is_slow = seconds_of(_SMALL_PRODUCT) > _SLOW_SECONDS
        size = _SMALL_PRODUCT if is_slow else 8192 if device.type == "cuda" else 1536
    times = [seconds_of(size)]
    while len(times) < 6 and time.perf_counter() - begun < 1:
        times.append(seconds_of(size))
    return 2 * size**3 / min(times)


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def is_out_of_memory(error: Exception) -> bool:
    """Tells whether an error says that memory has run out, on a GPU or on the CPU."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def count_readers() -> int:
    """Threads that read images: one for each core that this process may use, 16 at most."""
    return min(MAX_READERS, count_cores())


def count_cores() -> int:
    """Cores that this process may use.

    Affinity and the limits of containers count, so that a job on one core of a large machine does not start hundreds.
    """
    from joblib import cpu_count

    return int(cpu_count())


def _limit_threads() -> None:
    """Keeps PyTorch from more threads than there are cores to use; it knows affinity, but not limits of containers."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > count_cores():
        torch.set_num_threads(count_cores())
