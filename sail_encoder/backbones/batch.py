"""Values that pass through a backbone: an image as its family takes it, several together, and their features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, TypeVar

from sail_encoder.images.decoding import Array
from sail_encoder.images.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image as a family of backbones takes it: read, brought to size and cut into views.

    Attributes:
        views: uint8, in the family's own layout.
        geometry: Where the patches lie in the image.
        cost: Tokens that it adds to a forward pass.
    """

    views: Array
    geometry: Geometry
    cost: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that share a forward pass.

    Attributes:
        views: uint8 on the CPU, in the family's own layout: one tensor, or one for each run of images of one size.
        geometries: Geometry per image, in the batch's own order.
        order: For each image of the batch its place in the list that it came from.
        counts: Views per image, in the batch's own order; empty where the family needs none.
    """

    views: "tuple[Tensor, ...]"
    geometries: Sequence[Geometry]
    order: Sequence[int]
    counts: Sequence[int] = ()

    @property
    def lengths(self) -> list[int]:
        """Patches per image, in the batch's own order."""
        return [prod(geometry.grid) for geometry in self.geometries]

    def pin_memory(self) -> "Batch":
        """The same batch in memory that can be copied to a GPU while it computes."""
        return replace(self, views=tuple(views.pin_memory() for views in self.views))

    def split(self, states: "Tensor") -> "list[Tensor]":
        """Cuts [total patches, C] into grids [nh, nw, C], in the order of the list that the images came from."""
        parts = states.split(self.lengths)
        grids = [part.unflatten(0, geometry.grid) for part, geometry in zip(parts, self.geometries, strict=True)]
        return self.unsort(grids)

    def unsort(self, items: Sequence[T]) -> list[T]:
        """Brings one item per image from the batch's order into that of the list that the images came from."""
        return [item for _, item in sorted(zip(self.order, items, strict=True), key=lambda pair: pair[0])]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hidden states of a batch, in its own order.

    Attributes:
        patches: For each layer [total patches, C].
        class_tokens: For each layer [images, C], empty where the backbone has no class token.
        thumbnails: For each layer per image the grid [nh, nw, C] of the whole image in one tile; empty where the family
            has none, or none was asked for.
    """

    patches: "dict[int, Tensor]"
    class_tokens: "dict[int, Tensor]" = field(default_factory=dict)
    thumbnails: "dict[int, list[Tensor]]" = field(default_factory=dict)


def group_consecutive(items: Iterable[T], cost: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Groups consecutive items whose tokens add up to at most `budget`; an item above it goes alone.

    Where a group ends depends on the items since the last end alone, so a run that resumes after a complete group forms
    the same groups as one that never stopped.
    """
    group: list[T] = []
    filled = 0
    for item in items:
        need = cost(item)
        if group and filled + need > budget:
            yield group
            group, filled = [], 0
        group.append(item)
        filled += need
    if group:
        yield group
