"""From the size of an image to the grid of patches that the model sees."""

import math
import re
from dataclasses import dataclass, replace

from sail_encoder.images.tiling import MAX_TILES, TILE_SIZE, choose_grid
from sail_encoder.io.errors import UserError

Size = tuple[int, int]
"""Height and width in pixels."""

MAX_TOKENS = 4096
"""Patches of an image at most, as the published example has it; the paper's tables were made with 3600."""


MAX_PIXELS = 178_956_970
"""Largest image that is decoded or made: the size at which Pillow speaks of a decompression bomb."""

_LONGEST = 40
"""Characters in which any rule can be written."""


@dataclass(frozen=True)
class Resize:
    """Rule that brings images to a size that patches tile.

    Attributes:
        fixed: (height, width) for all images, squashed to it whatever their aspect. None is the native rule: keep
            size and aspect, up to the next whole patch and `max_tokens`.
        max_tokens: Patches at most under the native rule.
        short: Bring the shorter side to so many pixels, and then each side by itself up to the next whole patch, as
            InternVL's segmentation does; within `max_tokens`.
        tile: Side in pixels of square tiles, a grid of which images are squashed to; see `choose_grid`.
        max_tiles: Tiles per image at most.
    """

    fixed: Size | None = None
    max_tokens: int = MAX_TOKENS
    short: int | None = None
    tile: int | None = None
    max_tiles: int = MAX_TILES

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}; allowed is 1 or more")
        if self.max_tiles < 1 or (self.tile is not None and self.tile < 1):
            raise UserError(f"resize {self} is not possible; tiles and their sides start at 1")
        height, width = self.fixed or ((self.tile if self.short is None else self.short),) * 2
        if height is None or width is None:
            return
        if min(height, width) < 1:
            raise UserError(f"resize to {self} is not possible; sides start at 1 pixel")
        if height * width * (1 if self.tile is None else self.max_tiles) > MAX_PIXELS:
            raise UserError(f"resize to {self} is not possible; allowed are {MAX_PIXELS:,} pixels, such as 13377x13377")

    @classmethod
    def parse(cls, text: str, max_tokens: int = MAX_TOKENS) -> "Resize":
        """Reads a rule.

        Args:
            text: `native`, `short512` (the shorter side), a side such as `224`, `HEIGHTxWIDTH` such as `448x672`, or
                `tiles`, also with their side and limit (`tiles448x10`).
            max_tokens: Patches at most under the native rule.

        Raises:
            UserError: If the text is none of these.
        """
        if text == "native":
            return cls(None, max_tokens)
        if len(text) > _LONGEST:
            raise UserError(
                f"resize '{text[:_LONGEST]}...' is not understood; use native, a side such as 224, or 448x672"
            )
        if tiles := re.fullmatch(r"tiles(?:(\d+)x(\d+))?", text):
            side, limit = (int(number) if number else None for number in tiles.groups())
            return cls(None, max_tokens, None, TILE_SIZE if side is None else side, limit or MAX_TILES)
        short = text.removeprefix("short")
        if short != text and short.isdecimal():
            return cls(None, max_tokens, int(short))
        sides = text.lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() for side in sides):
            raise UserError(
                f"resize '{text}' is not understood; use native, short512, a side such as 224, 448x672, or tiles"
            )
        return cls((int(sides[0]), int(sides[-1])), max_tokens)

    def override(self, text: str, max_tokens: int | None) -> "Resize":
        """This rule of a backbone with changes.

        Args:
            text: As in `parse`, or `auto` to keep the rule.
            max_tokens: A new limit, or None to keep it.

        Raises:
            UserError: If the text is not understood, or asks for tiles of a backbone that has none.
        """
        limit = self.max_tokens if max_tokens is None else max_tokens
        if text == "auto" or (text == "tiles" and self.tile):
            return replace(self, max_tokens=limit)
        rule = Resize.parse(text, limit)
        if rule.tile != self.tile and rule.tile:
            raise UserError(f"resize {text} is for backbones that see tiles of that size (SAIL-VL); use native or auto")
        return rule

    def to_patches(self, patch_size: int) -> "Resize":
        """This rule with a fixed size brought to the nearest whole patches."""
        if self.fixed is None or self.fixed[0] % patch_size == self.fixed[1] % patch_size == 0:
            return self
        height, width = (max(1, round(side / patch_size)) * patch_size for side in self.fixed)
        return replace(self, fixed=(height, width))

    def __str__(self) -> str:
        if self.short is not None:
            return f"short{self.short}"
        if self.tile is not None:
            return f"tiles{self.tile}x{self.max_tiles}"
        return "native" if self.fixed is None else f"{self.fixed[0]}x{self.fixed[1]}"

    def pixels(self, size: Size, scale: float = 1.0) -> Size:
        """Height and width that are aimed at, before whole patches and the limit of tokens are seen to.

        Args:
            size: Height and width of the image in pixels.
            scale: Factor on the size that the rule asks for. Of a shorter side it makes a whole number, rounded down,
                and the longer side follows that, as mmsegmentation and DINOv3 have it.
        """
        if self.short is None or self.fixed is not None:
            height, width = self.fixed or self._tiled(size)
            return max(1, round(height * scale)), max(1, round(width * scale))
        short = max(1, int(self.short * scale))
        height, width = (int(short * side / min(size) + 0.5) for side in size)
        return height, width

    def grid(self, size: Size, patch_size: int) -> Size:
        """Rows and columns of patches for an image of this size, at least one each."""
        if self.fixed is None and self.short is None and self.tile is None:
            return native_grid(size, patch_size, self.max_tokens)
        height, width = self.pixels(size)
        if self.short is not None:
            return limit_tokens(-(-height // patch_size), -(-width // patch_size), self.max_tokens)
        if height % patch_size or width % patch_size:
            nearest = "x".join(str(max(1, round(side / patch_size)) * patch_size) for side in (height, width))
            raise UserError(f"resize {self} is not a multiple of the patch size {patch_size}; the nearest is {nearest}")
        return height // patch_size, width // patch_size

    def tiles(self, size: Size) -> Size:
        """Rows and columns of tiles of an image of this size, (1, 1) under a rule without tiles."""
        if self.tile is None:
            return 1, 1
        columns, rows = choose_grid(size[::-1], self.max_tiles, tile_size=self.tile)
        return rows, columns

    def _tiled(self, size: Size) -> Size:
        """Height and width of a grid of tiles, or of the image itself."""
        rows, columns = self.tiles(size)
        return size if self.tile is None else (rows * self.tile, columns * self.tile)


def native_grid(size: Size, patch_size: int, max_tokens: int) -> Size:
    """The grid that SAIL's published preprocessing gives, at least one patch on each side.

    The longer side grows to a whole number of patches, the shorter follows in proportion and grows likewise. Where
    that is more than `max_tokens`, both shrink by the same factor and are rounded down.

    Args:
        size: Height and width of the image in pixels.
        patch_size: Side of a patch in pixels.
        max_tokens: Patches at most.

    Returns:
        Rows and columns.
    """
    long, short = max(size), min(size)
    long_patches = math.ceil(long / patch_size)
    short_patches = math.ceil(int(long_patches * patch_size * (short / long)) / patch_size)
    rows, columns = (long_patches, short_patches) if size[0] >= size[1] else (short_patches, long_patches)
    fits = short_patches >= 1 and rows * columns <= max_tokens
    return (rows, columns) if fits else limit_tokens(rows, columns, max_tokens)


def limit_tokens(rows: int, columns: int, max_tokens: int) -> Size:
    """A grid of at most so many patches, at least one on each side."""
    if rows * columns > max_tokens:
        factor = math.sqrt(max_tokens / (rows * columns))
        rows, columns = int(rows * factor), int(columns * factor)
    # An extreme aspect leaves the short side without a patch, and the long side may then not exceed the limit alone.
    return min(max(rows, 1), max_tokens), min(max(columns, 1), max_tokens)
