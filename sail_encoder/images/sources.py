"""Sources of images: files, folders, globs, lists and tar shards, each image under a name of its own.

The name (`key`) of an image is its path below the deepest folder that holds all sources; it says where the features go.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from sail_encoder.images.decoding import INSTALL_HEIC
from sail_encoder.images.files import HEIC_SUFFIXES, IMAGE_SUFFIXES, ImageFile, is_hidden, suffix_of
from sail_encoder.images.lists import LIST_SUFFIXES, PATH_COLUMNS, base_of, common_folder, read_list
from sail_encoder.images.table import STEP, ImageBatch, ImageTable
from sail_encoder.images.tars import list_tar
from sail_encoder.io.errors import SourceError
from sail_encoder.io.files import irregular_entry, irregular_kind, walk
from sail_encoder.io.remote import explain_network, is_remote, open_file_system, protocol_of, status_of

__all__ = ["IMAGE_SUFFIXES", "PATH_COLUMNS", "ImageFile", "ImageList", "expand_braces", "list_images"]

_READABLE = IMAGE_SUFFIXES | LIST_SUFFIXES | {".tar"}
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST_BRACES = 1_000_000
_SHOWN = 5


@dataclass(frozen=True)
class ImageList:
    """Images and the folder that their keys are relative to.

    Attributes:
        root: The folder.
        images: The images, as a table or a list.
        passed_over: Of files in folders that are no images, how many have each suffix.
        irregular: Of what is named like an image but is no regular file, kind and path.
    """

    root: str
    images: Sequence[ImageFile]
    passed_over: Counter[str] = field(default_factory=Counter)
    irregular: Sequence[str] = ()

    def notes(self) -> list[str]:
        """Lines that say what was passed over."""
        notes = []
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in self.passed_over.most_common(_SHOWN))
            more = ", ..." if len(self.passed_over) > _SHOWN else ""
            # Where photographs of telephones are passed over, the package that reads them is not there.
            hint = "" if HEIC_SUFFIXES.isdisjoint(self.passed_over) else f" (for .heic: {INSTALL_HEIC})"
            notes.append(f"{self.passed_over.total():,} other files passed over: {kinds}{more}{hint}")
        if self.irregular:
            more = f" and {len(self.irregular) - _SHOWN:,} more" if len(self.irregular) > _SHOWN else ""
            notes.append(f"passed over: {', '.join(self.irregular[:_SHOWN])}{more}; only regular files are read")
        return notes


def list_images(sources: Sequence[str]) -> ImageList:
    """Lists the images of all sources, folders in sorted order, lists and shards in theirs.

    No image is opened or looked at; whether one that a list names is there, reading it shows.

    Args:
        sources: Image files, folders (searched through), globs (`**` included), lists (`.txt` with a path a line,
            `.csv`, `.tsv` or `.parquet` with a column of paths; relative paths start at the list) and `.tar` shards.
            `{000..123}` stands for each of these numbers. All of it may be on another machine, as in `s3://bucket/x`.

    Returns:
        The images; one that is named twice is listed once.

    Raises:
        SourceError: If a source does not exist or cannot be listed, or none holds an image.
    """
    listing = _Listing()
    for source in sources:
        for path in [source] if os.path.exists(source) else expand_braces(source):
            listing.add_source(path)
    return listing.conclude(sources)


class _Listing:
    """Images of some sources, and the folders that their names start from."""

    def __init__(self) -> None:
        self.bases: set[str] = set()
        self.batches: list[ImageBatch] = []
        self.files: list[str] = []
        self.passed_over: Counter[str] = Counter()
        self.irregular: list[str] = []

    def add_source(self, source: str) -> None:
        """Adds what a source holds."""
        if is_remote(source):
            self._add_remote(source)
            return
        path = os.path.abspath(os.path.expanduser(source))
        if os.path.isdir(path):
            self.bases.add(path)
            for names in _in_steps(chain.from_iterable(self._walk(path))):
                self._add_batch(ImageBatch.of(f"{path.rstrip('/')}/", names))
        elif os.path.isfile(path):
            self._add_file(path)
        elif os.path.exists(path):
            kind = irregular_kind(os.stat(path).st_mode)
            raise SourceError(f"{source} is {kind}, and only regular files are read")
        elif glob.has_magic(source):
            self._add_matches(source, path)
        else:
            raise SourceError(f"no file or folder {source}")

    def conclude(self, sources: Sequence[str]) -> ImageList:
        """The list of all images that were added."""
        self._flush()
        if not any(map(len, self.batches)):
            raise SourceError(
                f"no images in {', '.join(sources)}; looked for {' '.join(sorted(IMAGE_SUFFIXES))}; "
                "name .tar shards themselves, as in 'folder/*.tar'"
                + "".join(f"; {note}" for note in ImageList("", (), self.passed_over, self.irregular).notes())
            )
        root = common_folder(sorted(self.bases), are_folders=True)
        table = ImageTable([batch.below(root) for batch in self.batches if len(batch)])
        return ImageList(root, table.unique(), self.passed_over, self.irregular)

    def _add_file(self, path: str) -> None:
        """Adds an image, or what a list or a shard holds."""
        suffix = suffix_of(path)
        if suffix == ".tar":
            self.bases.add(os.path.dirname(path))
            self._add_batch(list_tar(path))
        elif suffix in LIST_SUFFIXES:
            batches = read_list(path)
            self.bases.add(base_of(batches, path))
            for batch in batches:
                self._add_batch(batch)
        else:
            self.bases.add(os.path.dirname(path))
            self.files.append(path)
            if len(self.files) == STEP:
                self._flush()

    def _add_matches(self, source: str, path: str) -> None:
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise SourceError(f"nothing matches {source}")
        fixed = path[: min(path.index(magic) for magic in "*?[" if magic in path)]
        self.bases.add(os.path.dirname(fixed))
        for match in matches:
            if os.path.isfile(match) and suffix_of(match) in _READABLE:
                self._add_file(match)

    def _add_remote(self, source: str) -> None:
        files, name = open_file_system(source)
        is_web = protocol_of(source) in ("http", "https")
        if glob.has_magic(name) and not is_web:
            with explain_network(source):
                matches = sorted(map(str, files.glob(name)))
            if not matches:
                raise SourceError(f"nothing matches {source}")
            for match in matches:
                if suffix_of(match) in _READABLE:
                    self._add_file(files.unstrip_protocol(match))
        elif source.endswith("/") or not (is_web or suffix_of(source) in _READABLE):
            with explain_network(source):
                self._add_remote_folder(source.rstrip("/"), files.find(name, detail=True), files.unstrip_protocol)
        else:
            self._add_file(source)

    def _walk(self, folder: str) -> Iterator[list[str]]:
        """Paths of images below a folder, without the folder itself, those side by side together."""
        start = len(folder.rstrip("/")) + 1
        try:
            for entries in walk(folder):
                yield [entry.path[start:] for entry in entries if self._is_image(entry)]
        except OSError as error:
            raise SourceError(
                f"cannot list {error.filename}: {error.strerror}; repair that, or name what is beside it"
            ) from None

    def _is_image(self, entry: "os.DirEntry[str]") -> bool:
        """Tells whether a file is an image that can be read; others are noted."""
        suffix = suffix_of(entry.name)
        if suffix not in IMAGE_SUFFIXES:
            self.passed_over[suffix or "without suffix"] += 1
            return False
        kind = None if entry.is_file(follow_symlinks=False) else irregular_entry(entry)
        if kind:
            self.irregular.append(f"{entry.path} ({kind})")
        return kind is None

    def _add_batch(self, batch: ImageBatch) -> None:
        self._flush()
        self.batches.append(batch)

    def _flush(self) -> None:
        if self.files:
            self.batches.append(ImageBatch.of("", self.files, is_clean=not any(map(is_remote, self.files))))
            self.files = []

    def _add_remote_folder(self, folder: str, found: dict[str, dict[str, Any]], name_of: Callable[[str], str]) -> None:
        """Adds the images of a folder on another machine, whose listing also tells their sizes."""
        self.bases.add(folder)
        images = []
        for name, info in sorted(found.items()):
            path = name_of(name)
            if info.get("type") != "file" or is_hidden(path[len(folder) + 1 :]):
                continue
            if suffix_of(path) in IMAGE_SUFFIXES:
                images.append((path, status_of(info)))
            else:
                self.passed_over[suffix_of(path) or "without suffix"] += 1
        sizes = np.array([status.size for _, status in images], np.int64)
        versions = np.array([status.modified or 0 for _, status in images], np.int64)
        self._add_batch(ImageBatch.of("", [path for path, _ in images], sizes=sizes, modified=versions, is_clean=False))


def expand_braces(source: str) -> list[str]:
    """`shard-{000..123}.tar` as each of its names; also `{train,val}`.

    Raises:
        SourceError: If there are more than a million.
    """
    match = _BRACES.search(source)
    if match is None:
        return [source]
    first, last, choices = match.groups()
    if choices is None:
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)
        if len(numbers) > _MOST_BRACES:
            raise SourceError(f"{source} stands for {len(numbers):,} names; at most {_MOST_BRACES:,} are allowed")
        width = len(first) if first.startswith("0") or last.startswith("0") else 0
        names = [f"{number:0{width}d}" for number in numbers]
    else:
        names = choices.split(",")
    before, after = source[: match.start()], source[match.end() :]
    return [whole for name in names for whole in expand_braces(f"{before}{name}{after}")]


def _in_steps(names: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(names, STEP)):
        yield some
