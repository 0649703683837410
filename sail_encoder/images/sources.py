"""Where images come from: files, folders, globs, lists and tar shards, each image under a name of its own.

The name (`key`) of an image is its path below the deepest folder that holds all sources; it says where the features go.
"""

import csv
import glob
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sail_encoder.io.errors import SourceError

_COMMON_SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_RARE_SUFFIXES = {".avif", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tga"}
IMAGE_SUFFIXES = frozenset(_COMMON_SUFFIXES | _RARE_SUFFIXES)
PATH_COLUMNS = ("path", "image", "image_path", "file", "filename", "filepath", "file_name")
"""Names under which a table may hold the paths, in order of preference."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image, not opened yet.

    Attributes:
        key: Its name, a relative path with forward slashes, unique among all images of a run.
        path: The file it is in.
        size: Bytes of the encoded image, -1 where the file is missing.
        offset: Where it starts in a tar shard; None for a file of its own.
        modified: When the file was last written, in nanoseconds; None where it is missing, or there is no file.
    """

    key: str
    path: str
    size: int
    offset: int | None = None
    modified: int | None = None

    def open(self) -> str | bytes:
        """What Pillow can read: the path, or the bytes of a member of a tar shard."""
        if self.offset is None:
            return self.path
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class ImageList:
    """Images and the folder that their keys are relative to."""

    root: str
    images: list[ImageFile]


@dataclass(frozen=True, slots=True)
class _Found:
    """An image before it has a key; `member` is its name in a tar shard."""

    path: str
    size: int
    modified: int | None
    offset: int | None = None
    member: str = ""

    @classmethod
    def at(cls, path: str) -> "_Found":
        """A file of its own, which may be missing: that is reported when it is its turn."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return cls(path, -1, None)
        return cls(path, status.st_size, status.st_mtime_ns)


def list_images(sources: Sequence[str]) -> ImageList:
    """Lists the images of all sources, folders in sorted order, lists and shards in theirs.

    Args:
        sources: Image files, folders (searched through), globs (`**` included), lists (`.txt` with a path a line,
            `.csv`, `.tsv` or `.parquet` with a column of paths; relative paths start at the list) and `.tar` shards.

    Returns:
        The images; one that is named twice is listed once.

    Raises:
        SourceError: If a source does not exist or cannot be listed, or none holds an image.
    """
    bases, found = [], []
    for source in sources:
        for base, images in _list_source(source):
            bases.append(base)
            found += images
    if not found:
        raise SourceError(
            f"no images in {', '.join(sources)}; looked for {' '.join(sorted(IMAGE_SUFFIXES))}; "
            "name .tar shards themselves, as in 'folder/*.tar'"
        )
    root = os.path.commonpath(bases)
    listed: dict[str, ImageFile] = {}
    for item in found:
        image = ImageFile(_key(item, root), item.path, item.size, item.offset, item.modified)
        known = listed.setdefault(image.key, image)
        if (known.path, known.offset) != (image.path, image.offset):
            raise SourceError(f"two images are both named '{image.key}', in {known.path} and {image.path}; rename one")
    return ImageList(root, list(listed.values()))


def _list_source(source: str) -> Iterator[tuple[str, list[_Found]]]:
    """What a source holds, as (folder that names start from, images) pairs."""
    path = os.path.abspath(os.path.expanduser(source))
    if os.path.isdir(path):
        yield path, list(_walk(path, ()))
    elif os.path.isfile(path):
        yield _list_file(path)
    elif glob.has_magic(source):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {source}")
        fixed = path[: min(path.index(magic) for magic in "*?[" if magic in path)]
        files = [match for match in matches if os.path.isfile(match) and _suffix(match) in _READABLE]
        yield os.path.dirname(fixed), []
        yield from map(_list_file, files)
    else:
        raise SourceError(f"no file or folder {source}")


def _list_file(path: str) -> tuple[str, list[_Found]]:
    suffix = _suffix(path)
    if suffix == ".tar":
        return os.path.dirname(path), list(_list_tar(path))
    if suffix not in _LIST_READERS:
        return os.path.dirname(path), [_Found.at(path)]
    folder = os.path.dirname(path)
    paths = [os.path.abspath(os.path.join(folder, entry)) for entry in _read_list(path)]
    if not paths:
        raise SourceError(f"{path} names no images")
    inside = all(entry.startswith(folder + os.sep) for entry in paths)
    base = folder if inside else os.path.commonpath([os.path.dirname(entry) for entry in paths])
    return base, [_Found.at(entry) for entry in paths]


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Found]:
    """Images below a folder, depth first in sorted order; links are followed, but not in circles."""
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        entries = [] if identity in above else sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"cannot list {folder}: {error.strerror}; mend that, or name what is beside it") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, (*above, identity))
        elif _suffix(entry.name) in IMAGE_SUFFIXES:
            yield _Found.at(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    # A link to itself leads nowhere, like a link to a missing file.
    except OSError:
        return False


def _list_tar(path: str) -> Iterator[_Found]:
    try:
        with tarfile.open(path, "r:") as shard:
            modified, members = os.stat(path).st_mtime_ns, shard.getmembers()
    except tarfile.ReadError as error:
        raise SourceError(f"{path} is not an uncompressed tar file, or is damaged ({error})") from None
    files = {os.path.normpath(member.name): member for member in members if member.isfile()}
    for member in members:
        is_link = member.islnk() or member.issym()
        if _suffix(member.name) in IMAGE_SUFFIXES and (is_link or member.isfile()):
            content = files.get(_link_target(member)) if is_link else member
            # A link to nothing is an empty image, so that it is recorded as a failure.
            size, offset = (content.size, content.offset_data) if content else (0, 0)
            yield _Found(path, size, modified, offset, member.name)


def _link_target(member: tarfile.TarInfo) -> str:
    """What a link in a tar shard stands for: a hard link names it from the top, another from where it is itself."""
    folder = "" if member.islnk() else os.path.dirname(member.name)
    return os.path.normpath(os.path.join(folder, member.linkname))


def _read_list(path: str) -> list[str]:
    try:
        return _LIST_READERS[_suffix(path)](path)
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 ({error.reason} at byte {error.start:,}); save it as UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"{path} is not a table ({error})") from None


def _read_text_list(path: str) -> list[str]:
    with open(path, encoding="utf-8-sig") as lines:
        return [line.strip() for line in lines if line.strip()]


def _read_csv(path: str) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        column = _path_column(rows.fieldnames or [], path)
        return [row[column] for row in rows if row[column]]


def _read_parquet(path: str) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
        column = _path_column(schema.names, path)
        kind = schema.field(column).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise SourceError(f"{path} has {kind} in column '{column}', not paths; save the images as files or .tar")
        return [entry for entry in parquet.read_table(path, columns=[column])[column].to_pylist() if entry]
    except pyarrow.ArrowException as error:
        raise SourceError(f"{path} is not a parquet file, or is damaged ({error})") from None


def _path_column(columns: Sequence[str], path: str) -> str:
    for name in PATH_COLUMNS:
        if name in columns:
            return name
    raise SourceError(f"{path} has the columns {', '.join(columns)}; name the one with the paths '{PATH_COLUMNS[0]}'")


_LIST_READERS: dict[str, Callable[[str], list[str]]] = {
    ".txt": _read_text_list,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
_READABLE = IMAGE_SUFFIXES | {".tar"} | _LIST_READERS.keys()


def _key(found: _Found, root: str) -> str:
    """A relative path that stays below any folder it is joined to, whatever a list or a shard says."""
    name = os.path.relpath(found.path, root).replace(os.sep, "/")
    if found.offset is not None:
        name = f"{name.removesuffix('.tar')}/{found.member}"
    parts = [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]
    return "/".join(parts).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()
