"""Colors, overlays and sheets: what is drawn where, and what the files hold."""

import re

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from sail_encoder.images.geometry import Geometry
from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.pictures.canvas import check_output, save_numbers, text_width
from sail_encoder.pictures.colors import MARKS, colorize, ramp
from sail_encoder.pictures.overlays import blend, enlarge, faint, fit, photograph, pixel_box, relief
from sail_encoder.pictures.sheets import Panel, Scale, Sheet, draw_sheet, shorten


def lightness(colors):
    """CIE L*, 0 to 100, of sRGB colors."""
    shares = colors / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def flat(color, height=40, width=60):
    return np.full((height, width, 3), color, np.uint8)


def drawn(sheet, tmp_path, dpi=72):
    draw_sheet(sheet, tmp_path / "sheet.png", dpi)
    return np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))


def test_equal_steps_of_a_score_are_equal_steps_of_lightness():
    steps = np.diff(lightness(ramp(17).astype(float)))
    assert steps.min() > 0
    assert steps.max() < 1.6 * steps.min()
    assert np.ptp(lightness(ramp().astype(float))) > 65


def test_the_ramp_needs_no_red_and_green_to_be_told_apart():
    """As someone without red cones sees it (Viénot, Brettel & Mollon 1999), it still goes from dark to bright."""
    linear = (ramp(33) / 255.0) ** 2.2
    seen = linear @ np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.004, -0.004, 1]]).T
    assert (np.diff(lightness(255 * seen.clip(0, 1) ** (1 / 2.2))) > 0).all()


def test_scores_beyond_the_range_have_its_last_color():
    colors = colorize(np.array([[-1, 0, 0.5, 1, 7]]), 0, 1)[0]
    np.testing.assert_array_equal(colors[0], colors[1])
    np.testing.assert_array_equal(colors[3], colors[4])
    np.testing.assert_array_equal(colors[[1, 3]], ramp()[[0, -1]])
    assert np.isfinite(colorize(np.ones((2, 2)), 1, 1)).all()


@pytest.mark.parametrize(("grid", "size"), [((3, 4), (30, 40)), ((5, 7), (61, 93)), ((13, 19), (278, 417))])
def test_patches_lie_on_the_pixels_that_they_cover(grid, size):
    values = np.arange(grid[0] * grid[1], dtype=np.float32).reshape(grid)
    geometry = Geometry((427, 640), (427, 640), grid)
    pixels = enlarge(values, size, smooth=False)
    for row in range(grid[0]):
        for column in range(grid[1]):
            left, top, right, bottom = pixel_box(geometry.patch_box(row, column), size, geometry.image_size)
            covered = np.zeros(size, bool)
            covered[top:bottom, left:right] = True
            np.testing.assert_array_equal(pixels == values[row, column], covered)


def test_interpolation_is_only_on_request():
    values = np.array([[0, 1], [1, 0]], np.float32)
    assert set(np.unique(enlarge(values, (20, 20), smooth=False))) == {0, 1}
    smooth = enlarge(values, (20, 20), smooth=True)
    assert len(np.unique(smooth.round(3))) > 20
    assert enlarge(np.zeros((2, 3, 5)), (8, 9), smooth=True).shape == (8, 9, 5)


def test_the_mean_color_of_a_patch_is_that_of_the_bar():
    photo = photograph(Image.fromarray(noise(60, 90)), 180)
    scores = np.linspace(0.3, 0.7, 24, dtype=np.float32).reshape(4, 6)
    plain = colorize(enlarge(scores, photo.shape[:2], smooth=False), 0, 1)
    painted = relief(plain, photo, (4, 6))
    assert np.abs(painted.astype(int) - plain).max() > 20, "the photograph is to be seen"
    means = [colors.reshape(4, 30, 6, 30, 3).mean((1, 3)) for colors in (painted, plain)]
    np.testing.assert_allclose(*means, atol=5)
    np.testing.assert_array_equal(relief(plain, flat(200, *photo.shape[:2]), (4, 6)), plain)


def test_blending():
    photo, colors = flat((100, 0, 0)), flat((0, 200, 0))
    np.testing.assert_array_equal(blend(photo, colors, 0.5)[0, 0], (50, 100, 0))
    strength = np.zeros((40, 60))
    strength[:20] = 1
    np.testing.assert_array_equal(blend(photo, colors, strength)[[0, 30], 0], [(0, 200, 0), (100, 0, 0)])
    assert faint(noise(8, 8)).min() >= 0.8 * 255 - 1


def test_longer_side():
    assert fit((427, 640), 320) == (214, 320)
    assert fit((2, 4000), 100) == (1, 100)


def test_panels_are_drawn_one_to_one_with_frames_around(tmp_path):
    pixels = noise(50, 80)
    plain = drawn(Sheet([[Panel(pixels), None], [None, Panel(flat((1, 2, 3)))]]), tmp_path)
    [[top, left]] = np.argwhere((plain == pixels[0, 0]).all(-1))[:1]
    np.testing.assert_array_equal(plain[top : top + 50, left : left + 80], pixels)
    framed = drawn(Sheet([[Panel(pixels, frames=[((20, 10, 40, 30), MARKS[0])])]]), tmp_path, 144)
    changed = framed[16 : 16 + 50, 16 : 16 + 80]
    np.testing.assert_array_equal(changed[10:30, 20:40], pixels[10:30, 20:40])
    assert (framed == MARKS[0]).all(-1).sum() > 4 * 20


def test_the_bar_and_the_legend_have_the_colors_that_are_drawn(tmp_path):
    legend = [("sky", (70, 130, 180)), ("a rather long name of a class", (10, 200, 30)), ("tree", (107, 142, 35))]
    page = drawn(Sheet([[Panel(flat(255))]], scale=Scale(-0.5, 0.9, "cosine\nsimilarity"), legend=legend), tmp_path)
    for _, color in legend:
        assert (page == color).all(-1).sum() == 8 * 8
    [[top, left]] = np.argwhere((page == ramp()[-1]).all(-1))[:1]
    [[bottom, _]] = np.argwhere((page == ramp()[0]).all(-1))[-1:]
    bar = page[top : bottom + 1, left]
    np.testing.assert_array_equal(bar, colorize(np.linspace(0.9, -0.5, len(bar)), -0.5, 0.9))


def test_links_join_points_of_two_panels(tmp_path):
    panels = [Panel(flat(0, 100, 100)), Panel(flat(0, 100, 100))]
    color = (213, 94, 0)
    page = drawn(Sheet([panels], links=[((20, 50), (80, 50), color)]), tmp_path)
    rows, columns = np.nonzero((page == color).all(-1))
    assert columns.min() == pytest.approx(8 + 20, abs=3)
    assert columns.max() == pytest.approx(8 + 100 + 6 + 80, abs=3)
    assert rows.mean() == pytest.approx(8 + 50, abs=1)


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_text_stays_text(tmp_path, suffix):
    sheet = Sheet(
        [[Panel(noise(40, 60), "cat $1$.jpg", "grid 3x4", [((1, 1, 9, 9), MARKS[1])])] * 2],
        "sail-tiny, layer 5",
        scale=Scale(0, 1, "cosine"),
        legend=[("sky", MARKS[2])],
        links=[((1, 1), (5, 5), MARKS[3])],
    )
    out = tmp_path / f"sheet{suffix}"
    draw_sheet(sheet, out, 100)
    first = out.read_bytes()
    draw_sheet(sheet, out, 100)
    assert out.read_bytes() == first, "the same picture is the same file"
    if suffix == ".svg":
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", first.decode())
        assert {"sail-tiny, layer 5", "cat $1$.jpg", "grid 3x4", "cosine", "sky", "0.25"} <= set(texts)
    else:
        assert first.startswith(b"%PDF")
        assert b"/ToUnicode" in first


def test_long_names_lose_their_middle():
    name = "timm/vit_small_patch16_dinov3.lvd1689m"
    shown = shorten(name, 100, 8, 72)
    assert text_width(shown, 8, 72) <= 100
    assert re.fullmatch(r"timm/.*….*689m", shown)
    assert shorten(name, 1000, 8, 72) == name
    assert shorten("", 10, 8, 72) == ""


def test_what_cannot_be_written(tmp_path, monkeypatch):
    for name in ("a.abc", "a", "a.gif"):
        with pytest.raises(UserError, match="names no kind of picture"):
            check_output(tmp_path / name)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path / "b.png")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        check_output(tmp_path / "file" / "a.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install matplotlib, or use a.png"):
        check_output(tmp_path / "a.svg")
    check_output(tmp_path / "a.png")


def test_numbers(tmp_path):
    arrays = {"a": np.zeros((2, 3)), "b": np.ones((2, 3))}
    save_numbers(arrays, (1, 2), tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (1, 2, 2, 3)
    arrays["b"] = np.ones((4, 3))
    with pytest.raises(UserError, match=r"holds one array, and these are 2x3 and 4x3; use .*x.npz"):
        save_numbers(arrays, (1, 2), tmp_path / "x.npy")
    save_numbers(arrays, (1, 2), tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["b"].shape == (4, 3)


@pytest.mark.parametrize(("low", "high", "decimals"), [(-0.05, 1, 2), (0.9979, 0.9995, 4), (0.5, 0.5, 2), (0, 1e-9, 5)])
def test_numbers_at_the_bar_are_told_apart(low, high, decimals):
    assert Scale(low, high, "").format(low) == f"{low:.{decimals}f}"
