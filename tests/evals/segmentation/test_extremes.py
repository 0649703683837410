"""The table of scores per image."""

import os
from types import SimpleNamespace

import torch

from evals.segmentation import extremes
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


def test_pictures_begin_with_the_worst_and_with_the_best(tmp_path, monkeypatch):
    scores = [float("nan"), 0.75, 0.25, 0.5]
    data = SimpleNamespace(
        samples=[SimpleNamespace(name=str(number)) for number in range(4)],
        class_map=SimpleNamespace(names=["a"]),
        read_image=lambda number: number,
        read_labels=lambda number: -number,
    )
    drawn = {}
    monkeypatch.setattr(extremes, "predict", lambda *given: [torch.tensor(10 * given[3](n)) for n in given[2]])
    monkeypatch.setattr(extremes, "save_comparisons", lambda rows, names, path, side: drawn.update({path.name: rows}))
    show_extremes(None, None, data, Scores([], [], 0.5, scores), tmp_path, pictures=2)
    assert drawn == {
        "worst.png": [("2, mIoU 25.0", 2, -2, 20), ("3, mIoU 50.0", 3, -3, 30)],
        "best.png": [("1, mIoU 75.0", 1, -1, 10), ("3, mIoU 50.0", 3, -3, 30)],
    }
