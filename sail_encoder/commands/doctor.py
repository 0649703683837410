"""`sail doctor`: whether this machine can run what a user wants, and what to do where it cannot."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from sail_encoder.io.files import format_bytes
from sail_encoder.io.versions import installed_version

OPTIONAL = {
    "accelerate": "device_map= in transformers' from_pretrained",
    "matplotlib": "plots of sail probe, sweep and segment; pictures as SVG and PDF",
    "onedl-mmsegmentation": "heads.mmseg",
    "peft": "LoRA as in docs/fine-tuning.md",
    "pillow-heif": "photographs in HEIC",
    "ray": "sail extract --engine ray",
}
SAIL_7B_BYTES = 14_500_000_000
"""Weights of SAIL-7B's encoder in bfloat16."""

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do."""

    verdict: Verdict
    name: str
    value: str
    advice: str = ""


def doctor() -> int:
    """Checks this machine and says what to do about what is missing.

    Looks at versions, devices, precisions, memory, disk and optional parts.

    Returns:
        Exit status: 0 if nothing fails, 1 otherwise.
    """
    findings = [finding for check in CHECKS for finding in check()]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        advice = f" - {finding.advice}" if finding.advice else ""
        print(f"{finding.verdict:<4}  {finding.name:<{width}}  {finding.value}{advice}")
    return int(any(finding.verdict == "fail" for finding in findings))


def _check_python() -> Iterator[Finding]:
    yield Finding("ok", "python", platform.python_version())


def _check_packages() -> Iterator[Finding]:
    try:
        declared = [Requirement(text) for text in requires("sail-encoder") or ()]
    except PackageNotFoundError:
        yield Finding("fail", "sail-encoder", "not installed", "pip install . in its folder")
        return
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _check_requirement(requirement)
    for package, purpose in OPTIONAL.items():
        version = installed_version(package)
        if version is None:
            yield Finding("note", package, "missing", f"only for {purpose}: pip install {package}")
        else:
            yield Finding("ok", package, version)


def _check_requirement(requirement: Requirement) -> Finding:
    version = installed_version(requirement.name)
    if version is None:
        return Finding("fail", requirement.name, "missing", f"pip install '{requirement}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("fail", requirement.name, version, f"pip install '{requirement}'")
    return Finding("ok", requirement.name, version)


def _check_imports() -> Iterator[Finding]:
    """Installed versions that do not fit each other show when they are imported."""
    for package in ("torchvision", "timm", "transformers"):
        try:
            import_module(package)
        except Exception as error:
            reason = str(error).splitlines()[0]
            yield Finding("fail", f"import {package}", reason, f"pip install --upgrade torch torchvision {package}")


def _check_devices() -> Iterator[Finding]:
    import torch

    from sail_encoder.io.devices import DTYPES, choose_dtype, list_devices, measure_matrix_rate

    if torch.version.cuda and not torch.cuda.is_available():
        yield Finding("note", "cuda", "no GPU that PyTorch can use", "check nvidia-smi if there should be one")
    for device in list_devices("auto"):
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        )
        yield Finding("ok", str(device), name)
        # Many processors have no products in float16, and take minutes for them.
        for dtype in DTYPES if device.type != "cpu" else ("float32", "bfloat16"):
            label = f"{device} {dtype}"
            try:
                rate = measure_matrix_rate(device, choose_dtype(dtype, device))
            except RuntimeError as error:
                yield Finding("fail", label, str(error).splitlines()[0], "use another --precision")
            else:
                yield Finding("ok", label, f"{rate / 1e12:.3g} TFLOP/s in large matrix products")
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
        return Finding("ok", name, value)
    return Finding("note", name, value, f"SAIL-7B in bfloat16 needs {format_bytes(SAIL_7B_BYTES)}; load fewer --layers")


def _check_disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("disk here", Path.cwd()), ("Hub cache", Path(HF_HUB_CACHE))):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
        value = f"{format_bytes(free)} free in {folder}"
        if name == "Hub cache" and free < 2 * SAIL_7B_BYTES:
            yield Finding("note", name, value, "SAIL-7B needs about 15 GB; set HF_HOME to a larger disk")
        else:
            yield Finding("ok", name, value)


def _check_tiny() -> Iterator[Finding]:
    import numpy as np

    from sail_encoder.backbones.registry import load_backbone

    try:
        features = load_backbone("sail-tiny").encode([np.zeros((64, 96, 3), np.uint8)])[0]
    except Exception as error:
        yield Finding(
            "fail", "sail-tiny", f"{type(error).__name__}: {error}", "pip install --force-reinstall . in its folder"
        )
    else:
        rows, columns = features.grid_size
        yield Finding("ok", "sail-tiny", f"encodes an image to {rows}x{columns} patches")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _check_python,
    _check_packages,
    _check_imports,
    _check_devices,
    _check_memory,
    _check_disk,
    _check_tiny,
)
