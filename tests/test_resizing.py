import pytest

from sail_encoder.images.resizing import Resize, native_grid
from sail_encoder.io.errors import UserError


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((224, 224), (16, 16)),
        ((480, 640), (35, 46)),
        ((512, 512), (37, 37)),
        ((375, 500), (27, 36)),
        ((768, 1024), (55, 73)),
        ((1080, 1920), (48, 85)),
        ((3000, 4000), (55, 73)),
        ((896, 896), (64, 64)),
        ((13, 13), (1, 1)),
    ],
)
def test_sizes_of_the_published_rule(size, grid):
    assert native_grid(size, 14, 4096) == grid
    assert native_grid(size[::-1], 14, 4096) == grid[::-1]


@pytest.mark.parametrize("size", [(10, 60000), (60000, 10), (1, 1), (1, 5000), (1, 10**7)])
@pytest.mark.parametrize("max_tokens", [1, 7, 3600, 4096])
def test_degenerate_aspects_keep_a_patch_and_the_limit(size, max_tokens):
    rows, columns = native_grid(size, 14, max_tokens)
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= max_tokens


def test_paper_limit():
    rows, columns = Resize(max_tokens=3600).grid((3000, 4000), 14)
    assert rows * columns <= 3600 < 55 * 73


def test_parsing():
    assert Resize.parse("native", 100) == Resize(None, 100)
    assert Resize.parse("224").grid((10, 900), 14) == (16, 16)
    assert Resize.parse("448x672").grid((10, 900), 14) == (32, 48)
    texts = ("native", "224x224", "448x672", "short512")
    assert [str(Resize.parse(text)) for text in texts] == list(texts)
    assert str(Resize.parse("224")) == "224x224"


def test_shorter_side():
    rule = Resize.parse("short224", 4096)
    assert rule.grid((100, 200), 14) == (16, 32)
    assert rule.grid((900, 450), 14) == (32, 16)
    # Each side by itself, where the native rule lets the shorter side grow with the longer.
    assert rule.grid((225, 224), 14) == (17, 16)
    assert Resize.parse("native").grid((225, 224), 14) == (17, 17)
    rows, columns = rule.grid((10, 9000), 14)
    assert rows * columns <= 4096
    assert rule.override("auto", 64) == Resize(None, 64, 224)


def test_override_keeps_what_is_not_said():
    rule = Resize(None, 256)
    assert rule.override("auto", None) == rule
    assert rule.override("auto", 100) == Resize(None, 100)
    assert rule.override("native", None) == rule
    assert Resize((224, 224)).override("auto", None).fixed == (224, 224)
    assert Resize((224, 224)).override("native", None).fixed is None


@pytest.mark.parametrize("text", ["nativ", "", "12x", "short", "short0", "shortx", "1x2x3", "-5", "0", "0x14", "3.5"])
def test_what_is_not_understood(text):
    with pytest.raises(UserError, match="resize"):
        Resize.parse(text)


def test_a_side_that_patches_do_not_tile_names_the_nearest():
    with pytest.raises(UserError, match="multiple of the patch size 14; the nearest is 224x448"):
        Resize.parse("225x450").grid((10, 10), 14)


def test_limit_must_be_positive():
    with pytest.raises(UserError, match="max_tokens is 0"):
        Resize(max_tokens=0)
