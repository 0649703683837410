"""Files on other machines, through fsspec: `s3://`, `gs://`, `hf://`, `https://` and what else it knows."""

import errno
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from sail_encoder.io.errors import UserError
from sail_encoder.io.fingerprints import digest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "abfs": "adlfs",
    "az": "adlfs",
}
"""What a protocol needs beside fsspec."""

_BUFFER = 2**18
"""Bytes that are asked for at once."""

_VERSIONS = ("ETag", "etag", "blob_id", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
"""Properties under which file systems tell one version of a file from another."""


class FileStatus(NamedTuple):
    """Status of a file, known without reading it.

    Attributes:
        size: Bytes.
        modified: When it was last written, in nanoseconds, or on another machine a number that names its version;
            None where that is not known.
    """

    size: int
    modified: int | None


def protocol_of(path: str) -> str | None:
    """`s3` of `s3://bucket/name`, None for a path of this machine."""
    match = _PROTOCOL.match(path)
    return match[1].lower() if match else None


def is_remote(path: str) -> bool:
    """Tells whether a path names a protocol."""
    return _PROTOCOL.match(path) is not None


def open_file_system(path: str) -> "tuple[AbstractFileSystem, str]":
    """File system of a path with a protocol, and the path as this file system has it.

    Raises:
        UserError: If nothing knows the protocol, or a package that it needs is missing.
    """
    import fsspec

    protocol = protocol_of(path)
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        package = _PACKAGES.get(str(protocol))
        remedy = f"pip install {package}" if package else str(error)
        raise UserError(f"{protocol}:// needs a package that is not installed: {remedy}") from None
    except ValueError as error:
        raise UserError(f"cannot read {path} ({error})") from None


def read_remote(path: str, offset: int | None = None, size: int | None = None) -> bytes:
    """Content of a file, or of `size` bytes of it from `offset` on.

    Raises:
        OSError: If it cannot be read, or another number of bytes has come.
    """
    files, name = open_file_system(path)
    with explain_network(path):
        if offset is None or size is None:
            return files.cat_file(name)
        content = files.cat_file(name, start=offset, end=offset + size) if size else b""
    if len(content) > size:
        reason = "its server sends whole files and no parts of them; download the shard"
        raise OSError(errno.ENOTSUP, reason, path)
    if len(content) != size:
        raise OSError(errno.EIO, f"{len(content):,} bytes came where {size:,} were asked for", path)
    return content


@contextmanager
def open_remote(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading in bytes, from any place in it.

    Raises:
        OSError: If it cannot be opened.
    """
    files, name = open_file_system(path)
    with explain_network(path):
        opened = files.open(name, "rb")
    with opened, io.BufferedReader(_RemoteFile(opened, path), _BUFFER) as file:
        yield file


class _RemoteFile(io.RawIOBase):
    """A file elsewhere, whose errors name it; what is raised by whoever reads from it stays as it is."""

    def __init__(self, opened: Any, path: str) -> None:
        self._opened, self._path = opened, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explain_network(self._path):
            content = self._opened.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        with explain_network(self._path):
            return self._opened.seek(place, whence)

    def tell(self) -> int:
        return self._opened.tell()


def remote_status(path: str) -> FileStatus:
    """Size and version of a file.

    Raises:
        OSError: If it is not there or cannot be looked at.
    """
    files, name = open_file_system(path)
    with explain_network(path):
        return status_of(files.info(name))


def status_of(info: dict[str, Any]) -> FileStatus:
    """Size and version from what a file system says of a file."""
    version = [str(info[name]) for name in _VERSIONS if info.get(name) is not None]
    # 60 bits, which a signed integer of 64 holds.
    return FileStatus(int(info.get("size") or 0), int(digest(version, 15), 16) if version else None)


@contextmanager
def explain_network(path: str) -> Iterator[None]:
    """Turns whatever a library raises of a file on another machine into an OSError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file", path) from None
    except UserError:
        raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or _reason(error), path) from None
    # Each library has errors of its own, with no common class.
    except Exception as error:
        raise OSError(errno.EIO, _reason(error), path) from None


def _reason(error: Exception) -> str:
    return " ".join(f"cannot be read ({type(error).__name__}: {error})".split())
