"""Grids of square tiles for images of any aspect: the rule of InternVL and SAIL-VL.

Sizes are (width, height), the order of the published rule and of Pillow.
"""

from functools import lru_cache

from PIL import Image

from sail_encoder.io.errors import UserError

TileGrid = tuple[int, int]
"""Columns and rows of tiles."""

TILE_SIZE = 448
MAX_TILES = 10
"""Tiles per image at most in SAIL-VL's published calls, without the thumbnail."""


def choose_grid(size: tuple[int, int], max_tiles: int, *, min_tiles: int = 1, tile_size: int = TILE_SIZE) -> TileGrid:
    """Chooses the grid of tiles whose aspect is closest to that of an image.

    Of several that are equally close, the one with more tiles is taken only if the image has more than half of the
    pixels that it would be resized to.

    Args:
        size: Width and height of the image in pixels.
        max_tiles: Tiles at most.
        min_tiles: Tiles at least.
        tile_size: Side of a tile in pixels.

    Returns:
        Columns and rows.

    Raises:
        UserError: If there is no such grid.
    """
    if not 1 <= min_tiles <= max_tiles or tile_size < 1 or min(size) < 1:
        raise UserError(
            f"a {size[0]}x{size[1]} image cannot be cut into {min_tiles} to {max_tiles} tiles of {tile_size} pixels; "
            "all of them start at 1"
        )
    return _closest_grid(size, _list_grids(min_tiles, max_tiles), tile_size)


def choose_second_grid(size: tuple[int, int], first: TileGrid, max_tiles: int, tile_size: int) -> TileGrid:
    """Chooses the second grid of MSAC, among those whose columns or rows do not divide the first's.

    Its tiles are cut where the first grid's are whole (the authors' evaluation code, `use_msac`).

    Returns:
        Columns and rows; (1, 1) where no other grid is within `max_tiles`.
    """
    others = tuple(grid for grid in _list_grids(1, max_tiles) if first[0] % grid[0] or first[1] % grid[1])
    return _closest_grid(size, others or ((1, 1),), tile_size)


def cut_tiles(image: Image.Image, grid: TileGrid, tile_size: int) -> list[Image.Image]:
    """Squashes an image to the size of a grid and cuts it row by row."""
    columns, rows = grid
    # Bicubic is what Pillow takes when nothing is said, as the published code does.
    resized = image.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
    corners = ((column * tile_size, row * tile_size) for row in range(rows) for column in range(columns))
    return [resized.crop((x, y, x + tile_size, y + tile_size)) for x, y in corners]


@lru_cache(maxsize=64)
def _list_grids(min_tiles: int, max_tiles: int) -> tuple[TileGrid, ...]:
    """Grids of so many tiles, few tiles first."""
    grids = (
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    )
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def _closest_grid(size: tuple[int, int], grids: tuple[TileGrid, ...], tile_size: int) -> TileGrid:
    aspect, area = size[0] / size[1], size[0] * size[1]
    best, least = grids[0], float("inf")
    for columns, rows in grids:
        difference = abs(aspect - columns / rows)
        if difference < least or (difference == least and area > 0.5 * tile_size**2 * columns * rows):
            best, least = (columns, rows), difference
    return best
