"""How a data set is split into parts for training, for choosing and for the report."""

import numpy as np
import pytest

from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import split
from evals.errors import DatasetError
from sail_encoder.images.sources import ImageList


def made(classes, parts=None, keys=None):
    keys = keys or [f"{number:03d}" for number in range(len(classes))]
    return LabelledImages("made", ImageList("made", []), keys, np.array(classes), parts or [""] * len(classes))


def test_splits_are_stratified_and_do_not_depend_on_order():
    classes = ["a"] * 50 + ["b"] * 10
    dataset = made(classes)
    parts = split(dataset)
    assert sorted([*parts.train, *parts.val, *parts.test]) == list(range(60))
    assert [sum(dataset.targets[parts.test] == name) for name in "ab"] == [10, 2]
    assert [sum(dataset.targets[parts.val] == name) for name in "ab"] == [4, 1]
    order = np.random.default_rng(0).permutation(60)
    shuffled = made(dataset.targets[order], keys=[dataset.keys[place] for place in order])
    again = split(shuffled)
    for name in ("train", "val", "test"):
        assert {dataset.keys[i] for i in getattr(parts, name)} == {shuffled.keys[i] for i in getattr(again, name)}


def test_seeds_change_validation_and_never_the_test_set():
    dataset = made(["a", "b"] * 50)
    first, second = split(dataset, seed=0), split(dataset, seed=1)
    assert first.test.tolist() == second.test.tolist()
    assert first.val.tolist() != second.val.tolist()


def test_parts_that_are_named_stay():
    parts = split(made(["a", "b"] * 4, ["train"] * 4 + ["test"] * 4), val_share=0.5)
    assert parts.test.tolist() == [4, 5, 6, 7]
    assert sorted([*parts.train, *parts.val]) == [0, 1, 2, 3]
    custom = split(made(["a", "b"] * 4, ["train"] * 4 + ["val"] * 4), val_share=0.5)
    assert custom.test.tolist() == [4, 5, 6, 7]
    three = split(made(["a", "b"] * 3, ["train"] * 2 + ["val"] * 2 + ["test"] * 2))
    assert (three.train.tolist(), three.val.tolist(), three.test.tolist()) == ([0, 1], [2, 3], [4, 5])


def test_images_on_both_sides_are_counted():
    keys = ["x", "y", "x", "z", "y", "w"]
    assert split(made(["a", "b"] * 3, ["train", "train", "test", "test", "val", "val"], keys)).shared == 1
    same = made(["a"] * 40, keys=[f"{number // 2}" for number in range(40)])
    assert split(same).shared == 0


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (made(["a", "b"]), {}, "the validation set of made is empty"),
        (made(["a"] * 4, ["test"] * 4), {}, "the training set of made is empty"),
        (made(["a", "b"] * 9), {"test_share": 1.0}, "test_share is 1.0"),
        (made(["a", "b"] * 9), {"val_share": 0.0}, "val_share is 0.0"),
    ],
)
def test_splits_that_cannot_be(dataset, settings, message):
    with pytest.raises(DatasetError, match=message):
        split(dataset, **settings)
