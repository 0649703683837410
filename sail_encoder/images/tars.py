"""Images in tar shards, which stay where they are: a shard is read from the place of each on."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sail_encoder.images.files import IMAGE_SUFFIXES, clean_name, is_hidden, suffix_of
from sail_encoder.images.table import ImageBatch
from sail_encoder.io.errors import SourceError, UserError
from sail_encoder.io.files import open_regular
from sail_encoder.io.remote import is_remote, open_remote, remote_status


def list_tar(path: str) -> ImageBatch:
    """Images of a shard in its order; of members of one name the last counts, as where a tar is unpacked.

    Raises:
        SourceError: If it is no uncompressed tar file, or is damaged.
    """
    with open_tar(path) as shard:
        members = list(read_members(shard, path))
    latest = {os.path.normpath(member.name): member for member in members}
    images = [(member, *_place(member, latest)) for member in latest.values() if _may_be_image(member)]
    modified = remote_status(path).modified if is_remote(path) else os.stat(path).st_mtime_ns
    return ImageBatch.of(
        f"{path.removesuffix('.tar')}/",
        [member.name for member, _, _ in images],
        tar=path,
        sizes=np.array([size for _, size, _ in images], np.int64),
        offsets=np.array([offset for _, _, offset in images], np.int64),
        modified=modified,
        is_clean=False,
    )


@contextmanager
def open_tar(path: str) -> Iterator[tarfile.TarFile]:
    """Opens an uncompressed tar file, here or on another machine.

    Raises:
        SourceError: If it is none, or reading it stumbles over what it says.
    """
    try:
        opened = open_remote(path) if is_remote(path) else open_regular(path)
        with opened as file, tarfile.open(fileobj=file, mode="r:") as shard:
            yield shard
    # Sizes that no file has end in errors of any kind.
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        if isinstance(error, UserError) or getattr(error, "filename", None):
            raise
        raise SourceError(f"{path} is not an uncompressed tar file, or is damaged ({error})") from None


def read_members(shard: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    """All members of a shard.

    Raises:
        SourceError: If one has an impossible size.
    """
    end = 0
    while (member := shard.next()) is not None:
        if member.size < 0 or shard.offset <= end:
            raise SourceError(f"{path} is damaged: '{member.name}' has {member.size} bytes")
        end = shard.offset
        yield member


def _may_be_image(member: tarfile.TarInfo) -> bool:
    name = clean_name(member.name)
    return suffix_of(name) in IMAGE_SUFFIXES and not is_hidden(name) and (_is_link(member) or member.isfile())


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def _place(member: tarfile.TarInfo, members: dict[str, tarfile.TarInfo]) -> tuple[int, int]:
    """Size and offset of what a member stands for, see `ImageBatch`.

    A link to nothing is an empty image, so that it is recorded as a failure.
    """
    content: tarfile.TarInfo | None = member
    if _is_link(member):
        content = members.get(_link_target(member))
    if content is None or not content.isfile():
        return 0, 0
    return content.size, -1 - content.offset if content.issparse() else content.offset_data


def _link_target(member: tarfile.TarInfo) -> str:
    """Target of a link in a tar shard: a hard link names it from the top, another from where it is itself."""
    folder = "" if member.islnk() else os.path.dirname(member.name)
    return os.path.normpath(os.path.join(folder, member.linkname))
