"""Locks that end with the process that holds them, also when it is killed."""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without locks answer, such as Lustre without `-o flock`, and some of FUSE."""

_warned: list[str] = []


def lock(file: IO[Any] | int, wait: bool, path: Path) -> bool:
    """Locks an open file for this process, by `flock`.

    Where the file system has no locks, all goes on without one, and the first such lock is named on stderr.

    Args:
        file: The open file.
        wait: Whether to wait for another process that holds the lock.
        path: Name of the file.

    Returns:
        False if another process holds the lock and `wait` is off.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn(path, error)
    return True


def _warn(path: Path, error: OSError) -> None:
    if not _warned:
        _warned.append(str(path))
        print(
            f"warning: {path} cannot be locked ({error.strerror}); going on without locks, so take care that no other "
            "run writes there",
            file=sys.stderr,
        )


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes that lock the same folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, wait=True, path=folder)
        yield
    finally:
        os.close(descriptor)
