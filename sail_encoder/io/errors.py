"""Errors that a user can correct: commands print them as one line, without a traceback."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """A mistake in what was asked for; the message names the value, what is allowed, and what to do next."""


_LONGEST_LINE = 1000
"""Characters of an error that are printed at most, since a file may say what is put into it."""


def in_one_line(error: Exception) -> str:
    """Line that a command prints of an error: for what a file system refuses, the file and the reason."""
    text = str(error) if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


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


@contextmanager
def explain_damage(what: str) -> Iterator[None]:
    """Turns whatever a library raises of a checkpoint's files into one line.

    Args:
        what: What the line begins with, such as the file.

    Raises:
        CheckpointError: If anything is raised within.
    """
    try:
        yield
    except UserError:
        raise
    # Each library stumbles over a damaged file in its own way.
    except Exception as error:
        raise CheckpointError(f"{what}: {in_one_line(error)}") from None


class StoreError(UserError):
    """A folder that cannot take these features."""
