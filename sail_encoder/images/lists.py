"""Lists of images: `.txt` with a path a line, `.csv`, `.tsv` and `.parquet` with a column of paths."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO, TextIO

from sail_encoder.images.files import IMAGE_SUFFIXES, suffix_of
from sail_encoder.images.table import STEP, ImageBatch
from sail_encoder.io.errors import SourceError
from sail_encoder.io.files import open_regular
from sail_encoder.io.remote import is_remote, open_remote, protocol_of

PATH_COLUMNS = ("path", "image", "image_path", "file", "filename", "filepath", "file_name")
"""Names under which a table may hold the paths, in order of preference."""

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".parquet"})

_LOOKED_AT = 100
"""Lines that decide whether a list holds paths, or paths and labels."""

_WITH_LABEL = re.compile(rf"(.*({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))}))(\s*,\s*|\s+)[^/]+", re.IGNORECASE)

_UNCLEAN = r"//|/\.\.?(/|$)|/$|^\.\.?(/|$)"
"""Paths that `os.path.normpath` may change, and those with a protocol."""


def read_list(path: str) -> list[ImageBatch]:
    """Images that a list names, in its order; relative paths start at its folder.

    Raises:
        SourceError: If it cannot be read, or names none.
    """
    folder = path.rpartition("/")[0]
    try:
        with open_remote(path) if is_remote(path) else open_regular(path) as file:
            batches = [_batch(entries, folder) for entries in _read_entries(file, path)]
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 ({error.reason} at byte {error.start:,}); save it as UTF-8") from None
    except csv.Error as error:
        raise SourceError(f"{path} is not a table ({error})") from None
    if not batches:
        raise SourceError(f"{path} names no images")
    return batches


def base_of(batches: Sequence[ImageBatch], path: str) -> str:
    """Folder that names start from: that of the list if all images are below it, or else the deepest that holds all."""
    folder = os.fsencode(path.rpartition("/")[0])
    ends = [end for batch in batches for end in _first_and_last(batch)]
    if all(end.startswith(folder + b"/") for end in ends):
        return os.fsdecode(folder)
    # All paths lie between the first and the last in order, so what these have in common all have.
    return common_folder([os.fsdecode(min(ends)), os.fsdecode(max(ends))])


def common_folder(paths: Sequence[str], are_folders: bool = False) -> str:
    """The deepest folder that holds all paths, or `protocol://` where they have no more in common.

    Raises:
        SourceError: If some are on this machine and others are not, or they have different protocols.
    """
    protocols = {protocol_of(path): path for path in paths}
    if len(protocols) > 1:
        one, other = sorted(protocols.values())[:2]
        raise SourceError(f"{one} and {other} have no folder in common; give the images of one place at a time")
    start = f"{protocol}://" if (protocol := next(iter(protocols))) else "/"
    below = [path[len(start) :] + "/" * are_folders for path in paths]
    first, last = min(below), max(below)
    # What the first and the last in order begin with, all between them begin with.
    alike = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return start + first[:alike].rpartition("/")[0]


def _first_and_last(batch: ImageBatch) -> tuple[bytes, bytes]:
    from pyarrow import compute

    ends = compute.min_max(batch.names).as_py()
    return batch.base + ends["min"], batch.base + ends["max"]


def _read_entries(file: BinaryIO, path: str) -> Iterator[list[str]]:
    """Entries of a list, without empty ones, some at a time."""
    entries: Iterator[str]
    if suffix_of(path) == ".parquet":
        entries = chain.from_iterable(_read_parquet(file, path))
    else:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=None if suffix_of(path) == ".txt" else "")
        entries = _read_lines(text, path) if suffix_of(path) == ".txt" else _read_table(text, path)
    while some := list(islice(entries, STEP)):
        yield some


def _read_lines(text: TextIO, path: str) -> Iterator[str]:
    lines: Iterator[str] = (stripped for line in text if (stripped := line.strip()))
    first = list(islice(lines, _LOOKED_AT))
    lines = chain(first, lines)
    if first and all(map(_has_label, first)):
        return _without_labels(lines, path)
    return lines


def _has_label(line: str) -> bool:
    return suffix_of(line) not in IMAGE_SUFFIXES and _WITH_LABEL.fullmatch(line) is not None


def _without_labels(lines: Iterable[str], path: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        match = _WITH_LABEL.fullmatch(line)
        if match is None and suffix_of(line) not in IMAGE_SUFFIXES:
            raise SourceError(f"{path}, image {number:,}: '{line}' is no path and a label, as the lines before it are")
        yield line if match is None or suffix_of(line) in IMAGE_SUFFIXES else match[1]


def _read_table(text: TextIO, path: str) -> Iterator[str]:
    rows = csv.DictReader(text, delimiter="\t" if suffix_of(path) == ".tsv" else ",")
    column = path_column(rows.fieldnames or [], path)
    return (row[column] for row in rows if row[column])


def _read_parquet(file: BinaryIO, path: str) -> Iterator[list[str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        column = path_column(schema.names, path)
        _require_text(schema.field(column).type, column, path)
        for batch in table.iter_batches(STEP, columns=[column]):
            yield [entry for entry in batch.column(0).to_pylist() if entry]
    # Of what Arrow stumbles over some is an OSError, but of no file.
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "filename", None):
            raise
        raise SourceError(f"{path} is not a parquet file, or is damaged ({error})") from None


def _require_text(kind: Any, column: str, path: str) -> None:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise SourceError(f"{path} has {kind} in column '{column}', not paths; save the images as files or .tar")


def path_column(columns: Sequence[str], path: object) -> str:
    """The column of a table that holds the paths.

    Raises:
        SourceError: If there is none, or two of that name.
    """
    for name in PATH_COLUMNS:
        if list(columns).count(name) > 1:
            raise SourceError(f"{path} has several columns '{name}'; keep one")
        if name in columns:
            return name
    raise SourceError(f"{path} has the columns {', '.join(columns)}; name the one with the paths '{PATH_COLUMNS[0]}'")


def _batch(entries: list[str], folder: str) -> ImageBatch:
    """Paths with the folder that they start from; as a rule all are relative or all absolute, and clean."""
    import pyarrow
    from pyarrow import compute

    column = pyarrow.array(entries, pyarrow.string())
    if compute.any(compute.starts_with(column, "./")).as_py():
        column = compute.replace_substring_regex(column, r"^(\./+)+", "")
    absolute = compute.starts_with(column, "/")
    if not compute.any(compute.match_substring_regex(column, _UNCLEAN)).as_py():
        if not compute.any(absolute).as_py():
            return ImageBatch(os.fsencode(f"{folder}/"), column.cast(pyarrow.binary()), is_clean=not is_remote(folder))
        if compute.all(absolute).as_py() and not is_remote(folder):
            return ImageBatch(b"", column.cast(pyarrow.binary()))
    paths = [absolute_path(entry, folder) for entry in column.to_pylist()]
    return ImageBatch.of("", paths, is_clean=not any(map(is_remote, paths)))


def absolute_path(entry: str, folder: str) -> str:
    """A path of this machine from `/` on, one with a protocol as it is; a relative one starts at the folder."""
    if is_remote(entry):
        return entry
    if is_remote(folder):
        return f"{folder}/{entry}"
    return os.path.normpath(os.path.join(folder, entry))
