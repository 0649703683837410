"""Ten million images as columns: a few bytes for each beside its path, and no object before it is asked for."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, starmap
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np

from sail_encoder.images.files import ImageFile, SparseMember, clean_name
from sail_encoder.io.errors import SourceError

if TYPE_CHECKING:
    import pyarrow

Array: TypeAlias = np.ndarray[Any, Any]
T = TypeVar("T")

STEP = 2**16
"""Images in a batch, and of how many there are objects at a time."""


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Neighbours in a list of images, whose paths begin alike.

    Attributes:
        base: What all paths begin with; of members of a tar shard its path without suffix, and a slash.
        names: What follows, as a column of bytes.
        tar: The shard that they are members of.
        sizes: int64, bytes of each image; None where nobody has looked.
        offsets: int64, where each begins in the shard; of a sparse member -1 - the place of its header.
        modified: int64 or one number, when each was written.
        is_clean: Whether names are known to have no empty part, `.` or `..`.
        key_start: Bytes of base and name that come before the key.
    """

    base: bytes
    names: "pyarrow.BinaryArray"
    tar: str | None = None
    sizes: Array | None = None
    offsets: Array | None = None
    modified: Array | int | None = None
    is_clean: bool = True
    key_start: int = 0

    @classmethod
    def of(cls, base: str, names: Sequence[str | bytes], **columns: Any) -> "ImageBatch":
        """From names as Python has them."""
        import pyarrow

        encoded = [os.fsencode(name) for name in names]
        return cls(os.fsencode(base), pyarrow.array(encoded, pyarrow.binary()), **columns)

    def __len__(self) -> int:
        return len(self.names)

    def below(self, root: str) -> "ImageBatch":
        """The same images with keys relative to a folder, or to `protocol://`."""
        start = len(os.fsencode(root)) + (not root.endswith("/"))
        return replace(self, key_start=start)

    def keys(self, rows: Array) -> list[str]:
        """Names of images below the root."""
        return self._keys(self._names(rows))

    def images(self, rows: Array) -> list[ImageFile]:
        """The images themselves."""
        names = self._names(rows)
        keys = self._keys(names)
        paths = [self.tar] * len(keys) if self.tar else [os.fsdecode(self.base + name) for name in names]
        columns = (self._column(values, rows) for values in (self.sizes, self.offsets, self.modified))
        fields = zip(keys, paths, *columns, strict=True)
        if self.offsets is None or (self.offsets[rows] >= 0).all():
            return list(starmap(ImageFile, fields))
        return [_image(*one) for one in fields]

    def _names(self, rows: Array) -> list[bytes]:
        first, count = int(rows[0]), len(rows)
        # Neighbours, as nearly all are, need no copy.
        if int(rows[-1]) - first + 1 == count:
            return self.names.slice(first, count).to_pylist()
        return self.names.take(rows).to_pylist()

    def _keys(self, names: list[bytes]) -> list[str]:
        before, cut = self.base[self.key_start :], max(0, self.key_start - len(self.base))
        keys = [(before + name[cut:]).decode("utf-8", "backslashreplace") for name in names]
        if self.is_clean:
            return [clean_name(key) if "\0" in key else key for key in keys]
        return [clean_name(key) for key in keys]

    @staticmethod
    def _column(values: Array | int | None, rows: Array) -> list[int | None]:
        return values[rows].tolist() if isinstance(values, np.ndarray) else [values] * len(rows)


def _image(key: str, path: str, size: int | None, offset: int | None, modified: int | None) -> ImageFile:
    if offset is not None and offset < 0:
        return SparseMember(key, path, size, -1 - offset, modified)
    return ImageFile(key, path, size, offset, modified)


class ImageTable(Sequence[ImageFile]):
    """Images in batches; a slice of it, or some of its rows, share the batches.

    Args:
        batches: All images.
        rows: Which of them, in ascending order; all by default.
    """

    def __init__(self, batches: Sequence[ImageBatch], rows: "Array | range | None" = None) -> None:
        self._batches = batches
        self._starts = np.cumsum([0, *map(len, batches)])
        self._rows = range(int(self._starts[-1])) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...

    @overload
    def __getitem__(self, index: slice) -> "ImageTable": ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageTable(self._batches, self._rows[index])
        (images,) = (batch.images(rows) for batch, rows in self._runs(np.array([self._rows[index]])))
        return images[0]

    def __iter__(self) -> Iterator[ImageFile]:
        runs = chain.from_iterable(map(self._runs, self._steps()))
        return chain.from_iterable(batch.images(inside) for batch, inside in runs)

    def take(self, rows: Array) -> "ImageTable":
        """Some of the images, by their numbers in ascending order."""
        return ImageTable(self._batches, np.asarray(self._rows)[rows].astype(_row_type(self._starts[-1])))

    def key_lists(self) -> Iterator[list[str]]:
        """Names of all images, in order, some at a time."""
        for rows in self._steps():
            yield self._keys(rows)

    def keys_at(self, rows: Array) -> list[str]:
        """Names of some images by their numbers, in any order."""
        return self._at(rows, ImageBatch.keys)

    def images_at(self, rows: Array) -> list[ImageFile]:
        """Some images by their numbers, in any order."""
        return self._at(rows, ImageBatch.images)

    def _at(self, rows: Array, what: Callable[[ImageBatch, Array], list[T]]) -> list[T]:
        order = np.argsort(rows, kind="stable")
        ascending = np.array([self._rows[row] for row in rows[order].tolist()], np.int64)
        found = [item for batch, inside in self._runs(ascending) for item in what(batch, inside)]
        return [item for _, item in sorted(zip(order.tolist(), found, strict=True), key=itemgetter(0))]

    @cached_property
    def key_index(self) -> "KeyIndex":
        """Numbers of images by their names."""
        return KeyIndex(self.key_lists(), len(self), self.keys_at)

    def unique(self) -> "ImageTable":
        """The same images, each once.

        Raises:
            SourceError: If two images have the same name.
        """
        twice = [row for group in self.key_index.equal_groups() for row in self._repeated(group)]
        return self.take(np.delete(np.arange(len(self)), twice)) if twice else self

    def _repeated(self, group: Array) -> list[int]:
        """Of images whose names have equal hashes, the rows of those that have come before."""
        first: dict[str, ImageFile] = {}
        repeated = []
        for row in group.tolist():
            image = self[row]
            known = first.setdefault(image.key, image)
            if (known.path, known.offset) != (image.path, image.offset):
                raise SourceError(
                    f"two images are both named '{image.key}', in {known.path} and {image.path}; rename one"
                )
            if known is not image:
                repeated.append(row)
        return repeated

    def _steps(self) -> Iterator[Array]:
        for start in range(0, len(self._rows), STEP):
            yield np.asarray(self._rows[start : start + STEP])

    def _keys(self, rows: Array) -> list[str]:
        return [key for batch, inside in self._runs(rows) for key in batch.keys(inside)]

    def _runs(self, rows: Array) -> Iterator[tuple[ImageBatch, Array]]:
        """Ascending rows of all batches as rows within each batch."""
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        for stretch in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(batches)) + 1):
            if len(stretch):
                number = int(batches[stretch[0]])
                yield self._batches[number], rows[stretch] - self._starts[number]


class KeyIndex:
    """Numbers of images by their names, in 12 bytes for each: hashes in order, and whose they are.

    Args:
        key_lists: All names in order, some at a time; of equal ones only the first is found.
        count: How many there are.
        keys_at: Gives names by their numbers.
    """

    def __init__(self, key_lists: Iterable[list[str]], count: int, keys_at: Callable[[Array], Sequence[str]]) -> None:
        self._keys_at = keys_at
        hashes = np.empty(count, np.int64)
        filled = 0
        for keys in key_lists:
            hashes[filled : filled + len(keys)] = _hashes(keys)
            filled += len(keys)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._order = order.astype(_row_type(count))

    def rows(self, keys: Sequence[str]) -> Array:
        """The number of each key's image, -1 where there is none."""
        if not len(self._hashes) or not keys:
            return np.full(len(keys), -1)
        wanted = _hashes(keys)
        places = np.searchsorted(self._hashes, wanted).clip(max=len(self._hashes) - 1)
        rows = np.where(self._hashes[places] == wanted, self._order[places], -1)
        known = np.flatnonzero(rows >= 0)
        # Equal hashes are of equal names but for once in a million runs; then the image counts as unknown.
        for place, key in zip(known.tolist(), self._keys_at(rows[known]), strict=True):
            if key != keys[place]:
                rows[place] = -1
        return rows

    def equal_groups(self) -> Iterator[Array]:
        """Numbers of images with equal hashes, ascending, a group at a time."""
        repeats = self._hashes[1:] == self._hashes[:-1]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], repeats, [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2).tolist():
            yield self._order[start : stop + 1]


def key_lists(images: Sequence[ImageFile]) -> Iterator[list[str]]:
    """Names of images in order, some at a time."""
    if isinstance(images, ImageTable):
        yield from images.key_lists()
    else:
        yield [image.key for image in images]


def keys_at(images: Sequence[ImageFile], rows: Array) -> list[str]:
    """Names of some images by their numbers."""
    if isinstance(images, ImageTable):
        return images.keys_at(rows)
    return [images[row].key for row in rows.tolist()]


def images_at(images: Sequence[ImageFile], rows: Array) -> list[ImageFile | None]:
    """Some images by their numbers, None in place of -1."""
    known = np.flatnonzero(rows >= 0)
    found: list[ImageFile | None] = [None] * len(rows)
    some = (
        images.images_at(rows[known]) if isinstance(images, ImageTable) else [images[n] for n in rows[known].tolist()]
    )
    for place, image in zip(known.tolist(), some, strict=True):
        found[place] = image
    return found


def index_of(images: Sequence[ImageFile]) -> KeyIndex:
    """Numbers of images by their names; that of a table is made once."""
    if isinstance(images, ImageTable):
        return images.key_index
    return KeyIndex(key_lists(images), len(images), lambda rows: keys_at(images, rows))


def take(images: Sequence[ImageFile], rows: Array) -> Sequence[ImageFile]:
    """Some images by their numbers in ascending order."""
    return images.take(rows) if isinstance(images, ImageTable) else [images[row] for row in rows.tolist()]


def _hashes(keys: Sequence[str]) -> Array:
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def _row_type(count: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if count < 2**31 else np.int64
