"""Shares of a list of images, for runs that several processes or machines do together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sail_encoder.images.files import ImageFile
from sail_encoder.images.table import Array, key_lists, take
from sail_encoder.io.errors import UserError
from sail_encoder.io.fingerprints import digest


@dataclass(frozen=True)
class Share:
    """One of several shares of a list of images, about equal in size; each may run on a machine of its own.

    Which share an image belongs to depends on its key alone, so that shares which are started at different times fit
    together even where images have been added between.

    Attributes:
        index: Which share, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Reads `i/n` with i from 0 to n - 1, as `--shard` has it."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"shard '{text}' is not understood; use i/n with i from 0 to n-1, such as 0/4")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, images: Sequence[ImageFile]) -> Sequence[ImageFile]:
        """The images of this share, in their order."""
        return images if self.count == 1 else take(images, np.flatnonzero(self.holds(images)))

    def holds(self, images: Sequence[ImageFile]) -> Array:
        """Bool [images], whether each is of this share."""
        if self.count == 1:
            return np.ones(len(images), bool)
        numbers = (_number(key) for keys in key_lists(images) for key in keys)
        return np.fromiter((number % self.count == self.index for number in numbers), bool, len(images))

    def split(self, count: int) -> "list[Share]":
        """This share in so many shares of its own."""
        return [Share(self.index + self.count * position, self.count * count) for position in range(count)]

    def name(self, stem: str) -> str:
        """A file name of this share's own."""
        return stem if self.count == 1 else f"{stem}_{self.index}_of_{self.count}"


WHOLE = Share()
"""All images, where nobody shares the run."""


def _number(key: str) -> int:
    """A number that is the same on every machine, and even among numbered names, as a plain checksum's is not."""
    return int(digest(key), 16)
