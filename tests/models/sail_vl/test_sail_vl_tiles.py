"""Dynamic tiling is that of the model card, and of the authors' evaluation for two grids."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from sail_vl_golden import GOLDEN

from sail_encoder.io.errors import UserError
from sail_encoder.models.sail_vl.image_processing_sail_vl import SailVLImageProcessor
from sail_encoder.models.sail_vl.tiles import choose_grid, choose_second_grid, count_tiles, tile_image

RECORDED = json.loads((GOLDEN / "sail_tiling" / "tiling.json").read_text())
LIMITS = (1, 6, 10, 12)
WITH_TWO_GRIDS = [entry for entry in RECORDED["images"] if "msac_tile_sha256" in entry]


def hashes(tiles):
    return [hashlib.sha256(np.ascontiguousarray(tile).tobytes()).hexdigest() for tile in tiles]


@pytest.mark.parametrize("limit", LIMITS)
def test_grids_of_sixty_sizes(limit):
    assert len(RECORDED["sizes"]) == 60
    for entry in RECORDED["sizes"]:
        columns, rows, tiles, has_thumbnail = entry["grids"][str(limit)]
        size = tuple(entry["size"])
        assert choose_grid(size, limit) == (columns, rows), size
        assert count_tiles(size, limit) == tiles == columns * rows + has_thumbnail, size


@pytest.mark.parametrize("limit", LIMITS)
def test_second_grids_of_sixty_sizes(limit):
    for entry in RECORDED["sizes"]:
        size, order = tuple(entry["size"]), entry["msac"][str(limit)]
        first = choose_grid(size, limit)
        columns, rows = choose_second_grid(size, first, limit, 448)
        expected = [] if first == (1, 1) else [f"{first[0]}x{first[1]}"] * (first[0] * first[1])
        expected += [f"{columns}x{rows}"] * (columns * rows) + ["1x1" if first == (1, 1) else "T"]
        assert expected == [name for name, count in order for _ in range(count)], size
        assert count_tiles(size, limit, msac=True) == len(expected)


@pytest.mark.parametrize("entry", RECORDED["images"], ids=lambda entry: entry["file"])
def test_pixels_bit_for_bit(entry):
    image = Image.open(GOLDEN / "sail_tiling" / entry["file"]).convert("RGB")
    assert hashes(tile_image(image, entry["max_num"])) == entry["tile_sha256"]


@pytest.mark.parametrize("entry", WITH_TWO_GRIDS, ids=lambda entry: entry["file"])
def test_pixels_of_two_grids_bit_for_bit(entry):
    image = Image.open(GOLDEN / "sail_tiling" / entry["file"])
    assert hashes(tile_image(image.convert("RGB"), entry["max_num"], msac=True)) == entry["msac_tile_sha256"]
    options = {"size": {"height": 56, "width": 56}, "max_tiles": entry["max_num"], "msac": True}
    out = SailVLImageProcessor(**options)(image, return_tensors="np")
    assert hashes(out["pixel_values"]) == entry["msac_tiles_56_sha256_float32"]
    assert out["num_tiles"].tolist() == [len(out["pixel_values"])]


def test_tiles_lie_row_by_row_and_the_thumbnail_last():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(4)[:, None] // 2 * 100, np.arange(6) // 2 * 100
    image = Image.fromarray(pixels).resize((1344, 896), Image.Resampling.NEAREST)
    tiles = tile_image(image, 6)
    centres = [tile.getpixel((224, 224))[:2] for tile in tiles]
    assert centres[:6] == [(row * 100, column * 100) for row in range(2) for column in range(3)]
    assert len(tiles) == 7
    assert {tile.size for tile in tiles} == {(448, 448)}


def test_fewest_tiles():
    assert choose_grid((448, 448), 12) == (1, 1)
    assert choose_grid((448, 448), 12, min_tiles=2) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(((4, 4), 0), {}), (((0, 4), 6), {}), (((4, 4), 6), {"min_tiles": 7}), (((4, 4), 6), {"tile_size": 0})],
)
def test_limits_that_allow_no_tile_are_refused(arguments, options):
    with pytest.raises(UserError, match="cannot be cut into"):
        choose_grid(*arguments, **options)
