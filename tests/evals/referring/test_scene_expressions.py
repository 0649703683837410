"""Expressions about scenes: functions of the seed, and true of the things that they mean and of no others."""

from collections import Counter

import numpy as np
import pytest

from evals.referring.data import SCENE_SPLITS, SCENES, SEVERAL, SceneExpressions, open_splits
from evals.scene_expressions import KINDS, draw_thing_masks, refer_to_things
from evals.scene_questions import NUMBERS
from evals.scenes import CLASSES, TRAINING_SEEDS, draw_scene

SEEDS = range(300, 360)


def expressions_of(seed, kinds=None):
    scene = draw_scene(seed, SEVERAL)
    return scene, refer_to_things(scene, np.random.default_rng(seed), 6, kinds)


def words_fit(scene, words):
    """Things of which all words are true, by a reading of their own."""
    known = lambda thing: {thing.color, thing.shape, thing.texture, thing.size, "thing", "things", f"{thing.shape}s"}  # noqa: E731
    return [index for index, thing in enumerate(scene.things) if set(words) <= known(thing)]


@pytest.mark.parametrize("kind", ["attribute", "all", "count"])
def test_they_mean_all_things_that_they_are_true_of(kind):
    found = 0
    for seed in SEEDS:
        scene, expressions = expressions_of(seed, [kind])
        for expression in expressions:
            first, *words = expression.text.replace("crosses", "crosss").split()
            if kind == "count":
                assert words.pop(0) == NUMBERS[len(expression.targets)]
            assert first == ("all" if kind == "all" else "the")
            assert words_fit(scene, words) == list(expression.targets)
            assert (len(expression.targets) == 1) == (kind == "attribute")
            found += 1
    assert found > 30


def test_relations_hold_for_one_thing_alone():
    found = Counter()
    for seed in SEEDS:
        scene, expressions = expressions_of(seed, ["relation"])
        for expression in expressions:
            word = next(word for word in (" left of ", " right of ", " above ", " below ") if word in expression.text)
            name, other = expression.text.removeprefix("the ").split(f"{word}the ")
            [there] = [thing for thing in scene.things if thing.name == other]
            edge = {" left of ": 0, " above ": 1, " right of ": 0, " below ": 1}[word]
            sign = 1 if word in (" left of ", " above ") else -1
            place = lambda thing: (thing.column, thing.row)[edge] * sign  # noqa: E731, B023
            named = [i for i in words_fit(scene, name.split()) if scene.things[i] is not there]
            assert [i for i in named if place(scene.things[i]) < place(there)] == list(expression.targets)
            assert len(expression.targets) == 1
            found[word] += 1
    assert len(found) == 4


def test_nothing_is_named_that_is_there():
    """Though most of it shares its color or its shape with a thing."""
    close = []
    for seed in SEEDS:
        scene, expressions = expressions_of(seed, ["nothing"])
        for expression in expressions:
            the, *words = expression.text.split()
            assert the == "the"
            assert words_fit(scene, words) == list(expression.targets) == []
            close += [any(words_fit(scene, [word]) for word in words)] if len(words) == 2 else []
    assert len(close) > 30
    assert sum(close) > len(close) / 2


def test_every_kind_is_drawn():
    kinds = Counter(expression.kind for seed in SEEDS for expression in expressions_of(seed)[1])
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 10


def test_masks_of_things():
    """Each has the pixels of its class within its box; together they are the mask of the scene."""
    for seed in SEEDS:
        scene = draw_scene(seed, SEVERAL)
        masks = draw_thing_masks(scene)
        assert np.array_equal(masks.sum(axis=0) == 1, scene.mask > 0)
        for mask, thing in zip(masks, scene.things, strict=True):
            left, top, right, bottom = thing.box
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)
            assert (scene.mask[mask] == CLASSES.index(thing.shape)).all()


def test_a_split_is_a_function_of_its_seeds():
    assert list(open_splits(SCENES, "train", "val")) == ["train", "val"]
    [first] = open_splits(SCENES, "all").values()
    for index in range(5):
        (image, expressions, masks), other = first.read(index), SceneExpressions("val").read(index)
        assert expressions == other[1]
        assert 1 <= len(expressions) <= 4
        assert np.array_equal(masks, other[2])
        assert masks.shape == (len(expressions), image.height, image.width)
        assert masks.any(axis=(1, 2)).tolist() == [bool(expression.targets) for expression in expressions]
    train, val = SCENE_SPLITS["train"], SCENE_SPLITS["val"]
    assert not any(seed in TRAINING_SEEDS for seed in val)
    assert train.start in TRAINING_SEEDS
    assert train.stop - 1 in TRAINING_SEEDS
