"""What a backbone returns for an image: grids of features, and where each patch lies in the picture."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one image.

    Attributes:
        layers: For each requested layer, counted from 0, its grid [nh, nw, C], in the order asked for.
        image_size: (height, width) of the original in pixels.
        resized_size: (height, width) of what the model saw, nh * patch_size by nw * patch_size.
        patch_size: Side of a patch in resized pixels.
        num_layers: Layers of the backbone, so that negative layers can be understood.
        class_tokens: For each requested layer the class token [C], of backbones that have one.
    """

    layers: "dict[int, Tensor]"
    image_size: Size
    resized_size: Size
    patch_size: int
    num_layers: int
    class_tokens: "dict[int, Tensor]" = field(default_factory=dict)

    @property
    def grid(self) -> "Tensor":
        """The grid [nh, nw, C] of the last requested layer."""
        return self.layers[next(reversed(self.layers))]

    @property
    def grid_size(self) -> Size:
        """(nh, nw), rows and columns of patches."""
        return self.resized_size[0] // self.patch_size, self.resized_size[1] // self.patch_size

    def pool(self, how: Literal["mean", "max", "cls"] = "mean", layer: int | None = None) -> "Tensor":
        """One vector [C] for the image.

        Args:
            how: `mean` or `max` over the patches, or `cls` for the class token.
            layer: Which of the requested layers, negatives from the backbone's end; the last requested by default.

        Raises:
            UserError: If there is no such layer, or `cls` is asked of a backbone without a class token.
        """
        index = next(reversed(self.layers)) if layer is None else layer + self.num_layers * (layer < 0)
        if index not in self.layers:
            raise UserError(f"layer {layer} was not requested; there is {', '.join(map(str, self.layers))}")
        if how == "cls":
            if index not in self.class_tokens:
                raise UserError("this backbone has no class token; pool with mean or max")
            return self.class_tokens[index]
        if how not in ("mean", "max"):
            raise UserError(f"pooling '{how}' is unknown; use mean, max or cls")
        patches = self.layers[index].flatten(0, 1)
        return patches.mean(0) if how == "mean" else patches.amax(0)

    def patch_box(self, row: int, column: int) -> Box:
        """The patch as a box in original pixels; negative indices count from the end.

        Raises:
            IndexError: If the grid has no such patch.
        """
        rows, columns = self.grid_size
        if not (-rows <= row < rows and -columns <= column < columns):
            raise IndexError(f"patch ({row}, {column}) is outside the {rows}x{columns} grid")
        down, across = self.image_size[0] / rows, self.image_size[1] / columns
        row, column = row % rows, column % columns
        return column * across, row * down, (column + 1) * across, (row + 1) * down

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch over a point of the original image, `x` to the right and `y` down.

        Raises:
            IndexError: If the point is outside the image.
        """
        height, width = self.image_size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"point ({x}, {y}) is outside the {width}x{height} image")
        rows, columns = self.grid_size
        return min(int(y * rows / height), rows - 1), min(int(x * columns / width), columns - 1)
