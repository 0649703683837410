"""Errors that a user can mend: commands print them as one line, without a traceback."""

from collections.abc import Mapping
from typing import Any


class UserError(ValueError):
    """A mistake in what was asked for; the message names the value, what is allowed, and what to do next."""


def in_one_line(error: UserError | OSError) -> str:
    """What a command prints of an error that is no bug: for what a file system refuses, the file and the reason."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


def name_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names the settings of an earlier run that are different now, with both values; empty where none is."""
    return "; ".join(
        f"{name} was {earlier.get(name)}, now {new}" for name, new in now.items() if earlier.get(name) != new
    )


def require_positive(name: str, value: float) -> None:
    """Makes sure that the value of an option is above zero.

    Raises:
        UserError: If it is not.
    """
    if value <= 0:
        allowed = "1 or more" if isinstance(value, int) else "more than 0"
        raise UserError(f"--{name} cannot be {value}; allowed is {allowed}")


class CheckpointError(UserError):
    """A checkpoint that cannot be found or used."""


class ImageError(UserError):
    """An image that cannot be read.

    Args:
        reason: Why.
        path: The file, where it is one.
    """

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(reason if path is None else f"{path}: {reason}")
        self.reason = reason


class SourceError(UserError):
    """A source of images that cannot be listed."""


class StoreError(UserError):
    """A folder that cannot take these features."""
