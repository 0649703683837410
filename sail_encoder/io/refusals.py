"""Refusals of the file system, in one line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sail_encoder.io.errors import StoreError
from sail_encoder.io.files import format_bytes

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explain_refusals(folder: Path, what_next: str = "the same command goes on") -> Iterator[None]:
    """Wraps work that writes into a folder.

    Args:
        folder: Where it writes.
        what_next: What helps once the cause is removed.

    Raises:
        StoreError: In place of an OSError, with what is full or forbidden, and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NO_SPACE:
            free = format_bytes(shutil.disk_usage(nearest_existing(folder)).free)
            raise StoreError(f"{folder}: {reason}, {free} free; free some, then {what_next}") from error
        place = error.filename or folder
        raise StoreError(
            f"cannot write {place}: {reason}; correct that or name another folder, then {what_next}"
        ) from error


def check_writable(folder: Path, what_next: str = "give the same command again") -> None:
    """Makes sure that a folder can be made, or written to, before any work is lost to it.

    Args:
        folder: The folder; nothing is made.
        what_next: What helps once the cause is removed.

    Raises:
        StoreError: If a file is in its place or above it, or it may not be written.
    """
    nearest = nearest_existing(folder)
    with explain_refusals(folder, what_next):
        if not nearest.is_dir():
            code = errno.EEXIST if nearest == folder.absolute() else errno.ENOTDIR
            raise OSError(code, os.strerror(code), str(folder))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def nearest_existing(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
