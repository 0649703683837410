"""Which device and which precision."""

import time

import torch

from sail_encoder.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device) -> torch.device:
    """Reads a device; `auto` is a GPU where there is one.

    Raises:
        UserError: If the device is unknown or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device '{device}' is not understood; use auto, cpu, cuda, cuda:0 or mps") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if (chosen.index or 0) >= count:
            raise UserError(f"device '{device}' is not here: PyTorch sees {count} CUDA devices; see sail doctor")
    elif chosen.type == "mps" and not _has_mps():
        raise UserError("device 'mps' is not here; use auto or cpu")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Reads a precision; `auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        UserError: If it is none of `DTYPES`.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype '{name}' is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def list_devices(devices: str) -> list[torch.device]:
    """Reads devices separated by commas; `auto` is every CUDA GPU, or else what `choose_device` takes."""
    if devices == "auto" and torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [choose_device(device.strip()) for device in devices.split(",")]


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    size = size or (8192 if device.type == "cuda" else 1536)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
