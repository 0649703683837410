"""Versions of what this run uses."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("sail-encoder", "torch", "torchvision", "transformers", "timm", "pillow", "numpy")


def installed_version(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that decide what features come out as."""
    return {"python": platform.python_version(), **{package: installed_version(package) for package in PACKAGES}}
