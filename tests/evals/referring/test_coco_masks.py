"""Masks of COCO: the pixels of its own tools, recorded, and some that are worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from evals.errors import DatasetError
from evals.referring.coco_masks import decode_mask, read_counts

CASES = json.loads((Path(__file__).parents[2] / "golden" / "coco_masks.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_masks_are_those_of_pycocotools(case):
    size = tuple(case["size"])
    mask = decode_mask({"size": case["size"], "counts": case["counts"]}, size)
    assert mask.shape == size
    assert read_counts(case["text"]) == case["counts"]
    assert np.array_equal(decode_mask({"size": case["size"], "counts": case["text"]}, size), mask)
    if case["polygons"] is not None:
        assert mask.any()
        assert np.array_equal(decode_mask(case["polygons"], size), mask)


def test_runs_go_down_the_columns():
    mask = decode_mask({"size": [2, 3], "counts": [1, 3, 2]}, (2, 3))
    assert mask.astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]
    assert decode_mask({"size": [2, 1], "counts": [0, 2]}, (2, 1)).all()


def test_a_box_is_filled_with_its_pixels():
    mask = decode_mask([[1, 2, 4, 2, 4, 5, 1, 5]], (6, 6))
    expected = np.zeros((6, 6), bool)
    expected[2:5, 1:4] = True
    assert np.array_equal(mask, expected)
    two = decode_mask([[0, 0, 1, 0, 1, 1, 0, 1], [1, 2, 4, 2, 4, 5, 1, 5]], (6, 6))
    expected[0, 0] = True
    assert np.array_equal(two, expected)
    assert not decode_mask([], (6, 6)).any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 3], "counts": [9]}, r"its size is \[3, 3\], that of the image \[2, 3\]"),
        ({"size": [2, 3], "counts": [5]}, "its runs do not make up 2 x 3 pixels"),
        ({"size": [2, 3], "counts": [-1, 7]}, "its runs do not make up"),
        ({"counts": [6]}, "size"),
        ([[1, 2, 3]], "cannot reshape"),
        ([[]], "has no points"),
        ([[float("inf")] * 6], "has no points"),
        ([[0, 0, 1e9, 1, 2, 2]], "a polygon reaches 1e\\+09 pixels, the image has 2 x 3"),
        (7, "not iterable"),
        (["a"], "could not convert"),
    ],
)
def test_what_is_no_mask(segmentation, message):
    with pytest.raises(DatasetError, match=f"a mask cannot be decoded .*{message}"):
        decode_mask(segmentation, (2, 3))
