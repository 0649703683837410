"""Images of any size, end to end in one sequence under a token budget: nothing is padded, nothing squashed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sail_encoder.images.pixels import PatchedImage
from sail_encoder.images.resizing import Size

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pack:
    """Patches of several images, images of equal length side by side.

    Attributes:
        patches: uint8 [total patches, 3 * patch_size**2].
        grids: Rows and columns of each image, in packed order.
        order: For each packed image its place in the list it came from.
    """

    patches: "Tensor"
    grids: list[Size]
    order: list[int]

    @classmethod
    def of(cls, images: Sequence[PatchedImage], pin_memory: bool = False) -> "Pack":
        """Packs images; pinned memory can be copied to a GPU while it computes."""
        import torch

        order = sorted(range(len(images)), key=lambda index: len(images[index].patches))
        patches = torch.from_numpy(np.concatenate([images[index].patches for index in order]))
        grids = [images[index].grid for index in order]
        return cls(patches.pin_memory() if pin_memory else patches, grids, order)

    def split(self, packed: "Tensor") -> "list[Tensor]":
        """Cuts [total patches, C] into grids [nh, nw, C], in the order of the list that was packed."""
        parts = packed.split([rows * columns for rows, columns in self.grids])
        grids = [part.unflatten(0, grid) for part, grid in zip(parts, self.grids, strict=True)]
        return self.unsort(grids)

    def unsort(self, items: Sequence[T]) -> list[T]:
        """Brings one item an image from packed order into the order of the list that was packed."""
        return [item for _, item in sorted(zip(self.order, items, strict=True), key=lambda pair: pair[0])]


def pack_consecutive(items: Iterable[T], tokens: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Groups consecutive items whose tokens add up to at most `budget`; an item above it goes alone.

    Where a group ends depends on the items since the last end alone, so a run that resumes behind a complete group
    forms the same groups as one that never stopped.
    """
    group: list[T] = []
    filled = 0
    for item in items:
        need = tokens(item)
        if group and filled + need > budget:
            yield group
            group, filled = [], 0
        group.append(item)
        filled += need
    if group:
        yield group
