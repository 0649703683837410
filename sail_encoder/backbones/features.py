"""Features of an image, as `encode` returns them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sail_encoder.images.geometry import Box, Geometry
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sail_encoder.backbones.spec import VectorPooling


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Features of one image.

    Attributes:
        layers: For each requested layer, counted from 0, its grid [nh, nw, C], in the order asked for.
        geometry: Where the patches lie in the image.
        num_layers: Layers of the backbone, so that negative layers can be understood.
        class_tokens: For each requested layer the class token [C], of backbones that have one.
        thumbnail: For each requested layer the grid [nh, nw, C] of the whole image in one tile, where the model saw
            tiles.
    """

    layers: "dict[int, Tensor]"
    geometry: Geometry
    num_layers: int
    class_tokens: "dict[int, Tensor]" = field(default_factory=dict)
    thumbnail: "dict[int, Tensor]" = field(default_factory=dict)

    def __repr__(self) -> str:
        rows, columns, channels = self.grid.shape
        layers = ", ".join(map(str, self.layers))
        height, width = self.image_size
        return f"Features({rows}x{columns} patches of {channels} channels, layers {layers}, image {height}x{width})"

    @property
    def grid(self) -> "Tensor":
        """Grid [nh, nw, C] of the last requested layer."""
        return self.layers[next(reversed(self.layers))]

    @property
    def grid_size(self) -> Size:
        """(nh, nw), rows and columns of patches."""
        return self.geometry.grid

    @property
    def image_size(self) -> Size:
        """(height, width) of the image as it was read, in pixels."""
        return self.geometry.image_size

    @property
    def resized_size(self) -> Size:
        """(height, width) of what the model saw, in pixels."""
        return self.geometry.resized_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in resized pixels."""
        return self.geometry.resized_size[0] // self.geometry.grid[0]

    def patch_box(self, row: int, column: int) -> Box:
        """Box of a patch in pixels of the image as it was read; see `Geometry.patch_box`."""
        return self.geometry.patch_box(row, column)

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch over a point of the image as it was read; see `Geometry.patch_at`."""
        return self.geometry.patch_at(x, y)

    def pool(self, how: "VectorPooling" = "mean", layer: int | None = None) -> "Tensor":
        """One float32 vector for the image.

        Args:
            how: `mean`, `max` or `gem` (the generalized mean) over the patches, `cls` for the class token, or
                `cls_mean` for the class token followed by the mean of the patches.
            layer: Which of the requested layers, negatives from the backbone's end; the last requested by default.

        Returns:
            [C], or [2 * C] for `cls_mean`.

        Raises:
            UserError: If there is no such layer or pooling, or the backbone has no class token that it needs.
        """
        from sail_encoder.backbones.pooling import pool_grid

        index = next(reversed(self.layers)) if layer is None else layer + self.num_layers * (layer < 0)
        if index not in self.layers:
            raise UserError(f"layer {layer} was not requested; there is {', '.join(map(str, self.layers))}")
        return pool_grid(self.layers[index], how, self.class_tokens.get(index))
