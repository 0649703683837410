"""Regions of a question: what is read as one, which patches it covers, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from sail_encoder.io.errors import ImageError, UserError
from sail_encoder.models.pixel_sail.image_processing_pixel_sail import PixelSailImageProcessor, limited_grid
from sail_encoder.models.pixel_sail.questions import check_region, refer
from sail_encoder.models.pixel_sail.regions import covered_patches, number_patches, read_region

SIZE = (60, 90)


def box(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("given", ["10,20,30,40", " 10, 20, 30, 40", (10, 20, 30, 40), [10.0, 20.0, 30.0, 40.0]])
def test_boxes(given):
    assert np.array_equal(read_region(given, SIZE), box(10, 20, 30, 40))


def test_a_box_holds_every_pixel_that_it_touches():
    assert np.array_equal(read_region("10.4,20.6,10.5,20.7", SIZE), box(10, 20, 11, 21))


@pytest.mark.parametrize(("mode", "value"), [("1", 1), ("L", 1), ("L", 255), ("RGB", (0, 0, 7)), ("P", 3)])
def test_pictures_of_masks(tmp_path, mode, value):
    """Whatever is not black is inside."""
    picture = Image.new(mode, SIZE[::-1])
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9, 0, 200, 0])
    picture.paste(value, (10, 20, 30, 40))
    path = tmp_path / "mask.png"
    picture.save(path)
    expected = box(10, 20, 30, 40)
    assert np.array_equal(read_region(str(path), SIZE), expected)
    assert np.array_equal(read_region(path, SIZE), expected)
    assert np.array_equal(read_region(expected.astype(np.uint8) * 9, SIZE), expected)


def test_a_path_with_a_comma(tmp_path):
    path = tmp_path / "a,b.png"
    Image.fromarray(box(1, 2, 3, 4).astype(np.uint8)).save(path)
    assert read_region(str(path), SIZE).sum() == 4


@pytest.mark.parametrize("given", ["1,2,3", "1,2,3,x", "1,2,3,inf", (1, 2), "1,2,3,4,5", np.ones((60, 90, 3)), 7])
def test_what_is_no_box(given):
    with pytest.raises(UserError, match="is not understood; give a box x0,y0,x1,y1") as refused:
        read_region(given, SIZE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", ["0,0,91,60", "0,0,90,61", "-1,0,5,5", "5,5,5,6", "6,5,5,6"])
def test_boxes_outside_the_image(given):
    with pytest.raises(UserError, match=rf"region {given} is no box in an image of 90x60 pixels"):
        read_region(given, SIZE)


def test_masks_of_another_size(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (60, 90), 255).save(path)
    with pytest.raises(UserError, match=r"mask\.png is 60x90 pixels, but the image 90x60"):
        read_region(path, SIZE)
    with pytest.raises(UserError, match="region the mask is 4x3 pixels"):
        read_region(np.ones((3, 4)), SIZE)


def test_empty_masks_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="is zero everywhere"):
        read_region(np.zeros(SIZE), SIZE)
    with pytest.raises(ImageError, match="no such file"):
        read_region(tmp_path / "none.png", SIZE)


def test_a_patch_is_covered_by_a_single_pixel():
    covered = covered_patches(box(17, 33, 18, 34), (4, 6), 16)
    # 60 x 90 pixels become 64 x 96.
    assert np.argwhere(covered).tolist() == [[2, 1]]


def test_the_last_of_overlapping_regions_counts():
    numbers = number_patches({5: box(0, 0, 90, 60), 2: box(0, 0, 10, 10)}, (4, 6), 16)
    assert numbers.tolist() == [2] + [5] * 23
    assert number_patches({0: box(0, 0, 10, 10)}, (4, 6), 16).tolist() == [0] + [-1] * 23


def test_regions_that_resizing_loses():
    mask = np.zeros((1000, 1000), bool)
    mask[500, 501] = True
    with pytest.raises(UserError, match="<Prompt3> vanishes"):
        number_patches({3: mask}, (2, 2), 16)


def test_numbers_of_prompts():
    with pytest.raises(UserError, match="no visual prompt 15; numbers go from 0 to 14"):
        number_patches({15: box(0, 0, 9, 9)}, (4, 6), 16)


@pytest.mark.parametrize(
    ("size", "patch_size", "grid"),
    [
        ((60, 90), 16, (4, 6)),
        ((1024, 1024), 16, (64, 64)),
        ((3000, 4000), 16, (48, 64)),
        ((4000, 3000), 16, (64, 48)),
        ((1, 5000), 16, (1, 64)),
        ((7, 7), 16, (1, 1)),
        ((2000, 2000), 14, (73, 73)),
    ],
)
def test_grids(size, patch_size, grid):
    """Worked out by hand from the published rule: the long side to 1024 at most, both rounded up to patches."""
    assert limited_grid(size, patch_size, 1024) == grid


def test_the_image_processor_keeps_to_both_limits():
    processor = PixelSailImageProcessor(patch_size=16)
    image = Image.new("RGB", (2000, 1500))
    assert processor(image, return_tensors="pt")["image_grid_hw"].tolist() == [[48, 64]]
    assert processor(image, longest_side=320, return_tensors="pt")["image_grid_hw"].tolist() == [[15, 20]]
    assert processor(image, size={"height": 32, "width": 48}, return_tensors="pt")["image_grid_hw"].tolist() == [[2, 3]]
    few = PixelSailImageProcessor(patch_size=16, max_tokens=100)
    rows, columns = few(image, return_tensors="pt")["image_grid_hw"][0].tolist()
    assert 80 <= rows * columns <= 100
    assert few.get_number_of_image_patches(1500, 2000) == rows * columns


def test_questions_for_masks():
    assert refer("the red car") == refer(" the red car. ") == " Please segment the red car in this image."
    for expression in ("", "  ", "."):
        with pytest.raises(UserError, match="the expression is empty"):
            refer(expression)


@pytest.mark.parametrize(
    ("question", "is_shown", "is_known", "message"),
    [
        ("what is this?", True, False, "has to name it, as <Prompt0>"),
        ("what is <Prompt1>?", True, True, "has to name it, as <Prompt0>"),
        ("<Prompt0> or <Prompt1>?", True, False, "has to name it, as <Prompt0>"),
        ("what is <Prompt0>?", False, False, "names <Prompt0>, but there is no region"),
        ("what is <Prompt1>?", False, True, "names <Prompt1>, but there is no region"),
    ],
)
def test_questions_that_name_other_regions(question, is_shown, is_known, message):
    with pytest.raises(UserError, match=message):
        check_region(question, is_shown, is_known)


def test_questions_that_name_their_region():
    check_region("what is <Prompt0>?", True)
    check_region("what is <Prompt0>?", False, True)
    check_region("what else is there?", False, True)
