"""`sail doctor`: whether this machine can run what a user wants, and what to do where it cannot."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from sail_encoder.io.files import format_bytes
from sail_encoder.io.versions import installed_version

OPTIONAL = {
    "accelerate": "device_map= in transformers' from_pretrained",
    "gradio": "sail demo --page",
    "matplotlib": "plots of sail probe, sweep and segment; pictures as SVG and PDF",
    "onedl-mmsegmentation": "heads.mmseg",
    "peft": "LoRA as in docs/fine-tuning.md",
    "pillow-heif": "photographs in HEIC",
    "ray": "sail extract --engine ray",
}
SAIL_7B_BYTES = 14_500_000_000
"""Weights of SAIL-7B's encoder in bfloat16."""

Verdict = Literal["ok", "note", "fail"]


Finding = tuple[Verdict, str, str]
"""Verdict on a thing, its name, and what there is to say: what was found, and after a dash what to do about it."""


def doctor() -> int:
    """Checks this machine and says what to do about what is missing.

    Looks at versions, devices, precisions, memory, disk and optional parts.

    Returns:
        Exit status: 0 if nothing fails, 1 otherwise.
    """
    findings = [finding for check in CHECKS for finding in check()]
    width = max(len(name) for _, name, _ in findings)
    for verdict, name, words in findings:
        print(f"{verdict:<4}  {name:<{width}}  {words}")
    return int(any(verdict == "fail" for verdict, _, _ in findings))


def _check_python() -> Iterator[Finding]:
    yield "ok", "python", platform.python_version()


def _check_packages() -> Iterator[Finding]:
    try:
        declared = [Requirement(text) for text in requires("sail-encoder") or ()]
    except PackageNotFoundError:
        yield "fail", "sail-encoder", "not installed - pip install . in its folder"
        return
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _check_requirement(requirement)
    for package, purpose in OPTIONAL.items():
        version = installed_version(package)
        if version is None:
            yield "note", package, f"missing - only for {purpose}: pip install {package}"
        else:
            yield "ok", package, version


def _check_requirement(requirement: Requirement) -> Finding:
    version = installed_version(requirement.name)
    if version is None:
        return "fail", requirement.name, f"missing - pip install '{requirement}'"
    if not requirement.specifier.contains(version, prereleases=True):
        return "fail", requirement.name, f"{version} - pip install '{requirement}'"
    return "ok", requirement.name, version


def _check_imports() -> Iterator[Finding]:
    """Installed versions that do not fit each other show when they are imported."""
    for package in ("torchvision", "timm", "transformers"):
        try:
            import_module(package)
        except Exception as error:
            reason = str(error).splitlines()[0]
            yield "fail", f"import {package}", f"{reason} - pip install --upgrade torch torchvision {package}"


def _check_devices() -> Iterator[Finding]:
    import torch

    from sail_encoder.io.devices import DTYPES, choose_dtype, list_devices, measure_matrix_rate

    if torch.version.cuda and not torch.cuda.is_available():
        yield "note", "cuda", "no GPU that PyTorch can use - check nvidia-smi if there should be one"
    for device in list_devices("auto"):
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        )
        yield "ok", str(device), name
        # Many processors have no products in float16, and take minutes for them.
        for dtype in DTYPES if device.type != "cpu" else ("float32", "bfloat16"):
            label = f"{device} {dtype}"
            try:
                rate = measure_matrix_rate(device, choose_dtype(dtype, device))
            except RuntimeError as error:
                yield "fail", label, f"{str(error).splitlines()[0]} - use another --precision"
            else:
                yield "ok", label, f"{rate / 1e12:.3g} TFLOP/s in large matrix products"
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            yield _memory(f"{device} memory", free, total)


def _check_memory() -> Iterator[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    # macOS does not say how much is free.
    free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in os.sysconf_names else None
    yield _memory("memory", free, os.sysconf("SC_PHYS_PAGES") * page)


def _memory(name: str, free: int | None, total: int) -> Finding:
    value = format_bytes(total) if free is None else f"{format_bytes(free)} free of {format_bytes(total)}"
    if total > SAIL_7B_BYTES:
        return "ok", name, value
    needed = format_bytes(SAIL_7B_BYTES)
    return "note", name, f"{value} - SAIL-7B in bfloat16 needs {needed}; load fewer --layers"


def _check_disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("disk here", Path.cwd()), ("Hub cache", Path(HF_HUB_CACHE))):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        value = f"{format_bytes(free)} free in {folder}"
        if name == "Hub cache" and free < 2 * SAIL_7B_BYTES:
            yield "note", name, f"{value} - SAIL-7B needs about 15 GB; set HF_HOME to a larger disk"
        else:
            yield "ok", name, value


def _check_tiny() -> Iterator[Finding]:
    import numpy as np

    from sail_encoder.backbones.registry import load_backbone

    try:
        features = load_backbone("sail-tiny").encode([np.zeros((64, 96, 3), np.uint8)])[0]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        yield "fail", "sail-tiny", f"{reason} - pip install --force-reinstall . in its folder"
    else:
        rows, columns = features.grid_size
        yield "ok", "sail-tiny", f"encodes an image to {rows}x{columns} patches"


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _check_python,
    _check_packages,
    _check_imports,
    _check_devices,
    _check_memory,
    _check_disk,
    _check_tiny,
)
