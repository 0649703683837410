"""Dynamic tiling, as the model card of SAIL-VL has it: an image of any size as square tiles of one size."""

from PIL import Image

from sail_encoder.images.tiling import MAX_TILES, TILE_SIZE, choose_grid, choose_second_grid, cut_tiles

__all__ = ["MAX_TILES", "TILE_SIZE", "choose_grid", "choose_second_grid", "count_tiles", "tile_image"]


def tile_image(
    image: Image.Image, max_tiles: int, *, tile_size: int = TILE_SIZE, msac: bool = False
) -> list[Image.Image]:
    """Cuts an image into tiles.

    Args:
        image: In RGB.
        max_tiles: Tiles of a grid at most.
        tile_size: Side of a tile in pixels.
        msac: Whether to add the tiles of a second grid.

    Returns:
        The tiles of the grid row by row, those of the second grid, and last the whole image in one tile, the
        thumbnail. A grid of a single tile is that thumbnail already and is not repeated.

    Raises:
        UserError: If `max_tiles` or `tile_size` is below 1.
    """
    first = choose_grid(image.size, max_tiles, tile_size=tile_size)
    tiles = [] if first == (1, 1) else cut_tiles(image, first, tile_size)
    if msac:
        tiles += cut_tiles(image, choose_second_grid(image.size, first, max_tiles, tile_size), tile_size)
    return tiles + cut_tiles(image, (1, 1), tile_size)


def count_tiles(size: tuple[int, int], max_tiles: int, *, tile_size: int = TILE_SIZE, msac: bool = False) -> int:
    """Number of tiles that `tile_image` gives for an image of this width and height."""
    first = choose_grid(size, max_tiles, tile_size=tile_size)
    count = 1 if first == (1, 1) else first[0] * first[1] + 1
    if msac:
        columns, rows = choose_second_grid(size, first, max_tiles, tile_size)
        count += columns * rows
    return count
