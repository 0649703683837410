"""The table of scores per image."""

import os
from types import SimpleNamespace

from evals.segmentation.extremes import show_extremes
from evals.segmentation.scores import Scores


def test_an_image_of_which_nothing_counts_has_a_row_and_no_score(tmp_path):
    data = SimpleNamespace(samples=[SimpleNamespace(name=name) for name in ("empty", "good", "bad")])
    show_extremes(None, None, data, Scores([], [], 0.5, [float("nan"), 0.75, 0.25]), tmp_path, pictures=0)
    assert (tmp_path / "images.csv").read_text().split() == ["image,mIoU", "bad,0.250000", "good,0.750000", "empty,"]
    show_extremes(None, None, data, Scores([], [], 0.5, [float("nan")] * 3), tmp_path, pictures=4)
    assert [path.name for path in tmp_path.iterdir()] == ["images.csv"]


def test_a_name_that_is_not_utf_8_is_in_the_table_as_it_is(tmp_path):
    name = b'a\xff, "b"'
    data = SimpleNamespace(samples=[SimpleNamespace(name=os.fsdecode(name))])
    show_extremes(None, None, data, Scores([], [], 0.5, [0.5]), tmp_path, pictures=0)
    assert (tmp_path / "images.csv").read_bytes().splitlines()[1] == b'"a\xff, ""b""",0.500000'
