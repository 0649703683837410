"""One image that was listed and not opened yet, and the rules for its name."""

import errno
import os
import tarfile
from dataclasses import dataclass, replace
from importlib.util import find_spec

from sail_encoder.io.files import open_regular
from sail_encoder.io.remote import is_remote, open_remote, read_remote, remote_status

_COMMON_SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_RARE_SUFFIXES = {".avif", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tga"}
HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Photographs as telephones store them, which the extra `heic` reads."""

_NO_SUFFIXES: frozenset[str] = frozenset()
IMAGE_SUFFIXES = frozenset(_COMMON_SUFFIXES | _RARE_SUFFIXES) | (
    HEIC_SUFFIXES if find_spec("pillow_heif") else _NO_SUFFIXES
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image, not opened yet.

    Attributes:
        key: Its name, a relative path with forward slashes, unique among all images of a run.
        path: The file it is in.
        size: Bytes of the encoded image, -1 where the file is missing, None where nobody has looked yet.
        offset: Where it starts in a tar shard; None for a file of its own.
        modified: When the file was last written, in nanoseconds; None where that is not known.
    """

    key: str
    path: str
    size: int | None = None
    offset: int | None = None
    modified: int | None = None

    def with_status(self) -> "ImageFile":
        """The same image with the size and the time of its file, which are looked up if they are not known."""
        if self.size is not None:
            return self
        try:
            if is_remote(self.path):
                size, modified = remote_status(self.path)
            else:
                status = os.stat(self.path)
                size, modified = status.st_size, status.st_mtime_ns
        # Of one that cannot be looked at, reading it says why.
        except (OSError, ValueError):
            size, modified = -1, None
        return replace(self, size=size, modified=modified)

    def open(self) -> str | bytes:
        """Source that `read_image` takes: the path, or the bytes of a member of a tar shard or of a file elsewhere.

        Raises:
            OSError: If these bytes cannot be read.
        """
        if is_remote(self.path):
            return read_remote(self.path, self.offset, self.size)
        if self.offset is None:
            return self.path
        with open_regular(self.path) as file:
            file.seek(self.offset)
            content = file.read(self.size or 0)
        if len(content) != self.size:
            raise OSError(errno.EIO, f"ends within the member of {self.size:,} bytes", self.path)
        return content


class SparseMember(ImageFile):
    """A member of a tar shard that leaves out its holes, as `tar -S` writes it; `offset` is where its header starts."""

    __slots__ = ()

    def open(self) -> bytes:
        opened = open_remote(self.path) if is_remote(self.path) else open_regular(self.path)
        with opened as file:
            file.seek(self.offset or 0)
            with tarfile.open(fileobj=file, mode="r:") as shard:
                content = shard.extractfile(shard.next() or "")
                return content.read() if content else b""


def suffix_of(path: str) -> str:
    """The suffix in lower case, with its dot; empty where there is none."""
    return os.path.splitext(path)[1].lower()


def clean_name(name: str) -> str:
    """A relative path that stays below any folder it is joined to, whatever a list or a shard says."""
    parts = [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


def is_hidden(name: str) -> bool:
    """Tells whether a cleaned name or a folder in it begins with a dot, as `._x.jpg` of macOS does."""
    return name.startswith(".") or "/." in name
