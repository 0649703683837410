"""Geometry: where the patches of an image lie in it."""

from dataclasses import dataclass

from sail_encoder.images.resizing import Size

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of an image on its way to a grid, from the reader to `index.parquet`.

    Attributes:
        image_size: (height, width) of the image as it was read, in pixels.
        resized_size: (height, width) of what the model saw.
        grid: Rows and columns of patches; they cover the whole image.
        exif_orientation: EXIF orientation that was found and not applied, 1 where there is none.
        tiles: Rows and columns of square tiles that the model saw in place of the whole, None where it saw the whole.
        second_tiles: Those of a second grid of tiles, None where there is none.
    """

    image_size: Size
    resized_size: Size
    grid: Size
    exif_orientation: int = 1
    tiles: Size | None = None
    second_tiles: Size | None = None

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    def patch_box(self, row: int, column: int) -> Box:
        """Box of a patch in pixels of the image as it was read; negative indices count from the end.

        Raises:
            IndexError: If the grid has no such patch.
        """
        rows, columns = self.grid
        if not (-rows <= row < rows and -columns <= column < columns):
            raise IndexError(f"patch ({row}, {column}) is outside the {rows}x{columns} grid")
        down, across = self.image_size[0] / rows, self.image_size[1] / columns
        row, column = row % rows, column % columns
        return column * across, row * down, (column + 1) * across, (row + 1) * down

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch over a point of the image as it was read, `x` to the right and `y` down.

        Raises:
            IndexError: If the point is outside the image.
        """
        height, width = self.image_size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"point ({x}, {y}) is outside the {width}x{height} image")
        rows, columns = self.grid
        return min(int(y * rows / height), rows - 1), min(int(x * columns / width), columns - 1)
