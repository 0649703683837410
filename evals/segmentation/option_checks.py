"""Checks of options that several of the commands have."""

import os
from pathlib import Path

from sail_encoder.io.errors import UserError

HIGHEST_SEED = 2**63 - 1
"""The highest that PyTorch and NumPy both take."""


def check_range(option: str, value: int, least: int, most: int | None = None) -> None:
    """Refuses a whole number that an option does not allow.

    Raises:
        UserError: If it is below `least` or above `most`.
    """
    if value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"--{option} cannot be {value}; allowed is {allowed}")


def check_folder(option: str, folder: str | None) -> None:
    """Refuses a folder that could not be made or written to, before any work is lost to it.

    Raises:
        UserError: If a file is in its place, or it may not be written.
    """
    if folder is None:
        return
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"--{option} cannot be {folder}, because {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"--{option} cannot be {folder}, because {nearest} may not be written; name another folder")
