"""Files and folders: whole files or none, regular files only, JSON, and the one walk through a folder."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from sail_encoder.io.errors import CheckpointError, UserError

StrPath = str | os.PathLike[str]

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def replacing(path: Path, work: Path | None = None) -> Iterator[Path]:
    """Gives a path to write to, and puts the file in its place when it is complete.

    What was there before stays if writing fails.

    Args:
        path: The file; its folder is made if need be.
        work: A folder of the caller's own, on the same file system, for the unfinished file; by default that lies
            beside the file, under its name with a dot before it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(unfinished_name(path.name)) if work is None else work / path.name
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_name(name: str) -> str:
    """Name that a file has beside its place while it is written, and keeps where that is cut short by a kill."""
    return f".{name}"


def read_fields(path: Path) -> dict[str, Any]:
    """Fields of a JSON file of a checkpoint; none where there is no file.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        fields = read_json(path)
    except UserError as error:
        raise CheckpointError(f"{error}; download it again") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no fields; download it again")
    return fields


def write_json(path: Path, content: Any, work: Path | None = None) -> None:
    """Writes a JSON file as a whole; NaN and infinite numbers become null, since JSON has none."""
    with replacing(path, work) as unfinished:
        text = json.dumps(_without_nan(content), indent=1, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: If it is no regular file, or no JSON.
    """
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def append_all(descriptor: int, data: Any) -> None:
    """Writes all bytes of a contiguous buffer to the end of an open file.

    Nothing waits in memory, so that after an error, as on a full disk, closing the file does not fail once more.

    Raises:
        OSError: If not all can be written; some bytes may have been.
    """
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def make_folders(folder: StrPath) -> None:
    """Makes a folder and those above it that are missing, as deeply nested as the system allows.

    Raises:
        OSError: If something else is in the place of one, or it may not be made.
    """
    missing, place = [], os.fspath(folder)
    while place and not os.path.isdir(place):
        missing.append(place)
        place = os.path.dirname(place)
    for place in reversed(missing):
        try:
            os.mkdir(place)
        except FileExistsError:
            # Another thread may have made it meanwhile.
            if not os.path.isdir(place):
                raise


def irregular_kind(mode: int) -> str | None:
    """Kind of a file that is not to be read, by its `st_mode`: a FIFO, a socket or a device; None for all others.

    Reading a FIFO waits for somebody who writes to it, and a device may never end.
    """
    return _KINDS.get(stat.S_IFMT(mode))


def irregular_entry(entry: "os.DirEntry[str]") -> str | None:
    """The same of what lies in a folder; a link to nothing is a missing file, and reading it says so."""
    try:
        return None if entry.is_file() else irregular_kind(entry.stat().st_mode)
    except OSError:
        return None


def require_regular(path: StrPath) -> None:
    """Makes sure that reading a path ends: it is neither a FIFO nor a socket nor a device.

    Raises:
        OSError: If it is one of them, with EINVAL, or it is not there.
    """
    kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    if kind is not None:
        raise _refusal(kind, path)


def open_regular(path: StrPath) -> BinaryIO:
    """Opens a regular file for reading, in bytes.

    Raises:
        OSError: If it cannot be opened, or is a FIFO, a socket or a device (EINVAL).
    """
    require_regular(path)
    # Between the check and the opening another file may have come there; without O_NONBLOCK a FIFO would wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    kind = irregular_kind(mode)
    if kind is not None or stat.S_ISDIR(mode):
        os.close(descriptor)
        # Opened as a file, a folder would be named by the number of the descriptor.
        raise _refusal(kind, path) if kind else IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: StrPath, encoding: str = "utf-8") -> str:
    """Text of a regular file.

    Raises:
        OSError: If it cannot be opened, or is a FIFO, a socket or a device (EINVAL).
        UnicodeDecodeError: If it has another encoding.
    """
    with open_regular(path) as file:
        return file.read().decode(encoding)


def _refusal(kind: str, path: StrPath) -> OSError:
    return OSError(errno.EINVAL, f"is {kind}, and only regular files are read", os.fspath(path))


def walk(folder: StrPath) -> Iterator[list["os.DirEntry[str]"]]:
    """All that lies below a folder but folders, depth first in the order of names; hidden names are left out.

    Links are followed, but not in circles. Folders may be nested as deeply as the system allows.

    Yields:
        What lies side by side, with no folder between.

    Raises:
        OSError: If a folder cannot be listed; its `filename` says which.
    """
    open_folders = [_scan(os.fspath(folder), ())]
    while open_folders:
        above, runs = open_folders[-1]
        run = next(runs, None)
        if run is None:
            open_folders.pop()
        elif isinstance(run, str):
            open_folders.append(_scan(run, above))
        else:
            yield run


_Identity = tuple[int, int]
_Run = str | list["os.DirEntry[str]"]
"""Path of a folder, or files side by side."""


def _scan(folder: str, above: tuple[_Identity, ...]) -> tuple[tuple[_Identity, ...], Iterator[_Run]]:
    """Identities of a folder and of those above it, and what lies in it; nothing where it lies in itself."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    runs: list[_Run] = []
    for entry in [] if identity in above else sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        # Of links `isdir` asks, as one to itself leads nowhere and is an error for the entry.
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
            runs.append(entry.path)
        elif runs and not isinstance(runs[-1], str):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return (*above, identity), iter(runs)


def format_bytes(count: float) -> str:
    """Writes a size for people, in powers of 1000."""
    if count < 1000:
        return f"{count:,.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:,.1f} {unit}"
    return f"{count / 1000:,.1f} TB"
