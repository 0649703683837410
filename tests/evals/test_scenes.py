import numpy as np
import pytest

from evals.scene_questions import CORNERS, KINDS, NUMBERS, ask_about
from evals.scenes import CLASSES, COLORS, RADII, SHAPES, TRAINING_SEEDS, draw_scene
from evals.tiny import LANGUAGE, PARTS


def test_a_scene_is_a_function_of_its_seed():
    first, again, other = draw_scene(5), draw_scene(5), draw_scene(6)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.things == again.things
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_evaluations_draw_from_seeds_that_training_never_sees():
    for seeds in (*PARTS, LANGUAGE):
        assert seeds.stop <= TRAINING_SEEDS.start
    assert len({seed for part in PARTS for seed in part}) == sum(map(len, PARTS))


@pytest.mark.parametrize("seed", range(12))
def test_masks_boxes_and_places_agree_with_the_picture(seed):
    scene = draw_scene(seed, height=150, width=200)
    assert scene.image.shape == (150, 200, 3)
    seen = np.zeros(scene.mask.shape, bool)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        inside = np.zeros_like(seen)
        inside[top:bottom, left:right] = scene.mask[top:bottom, left:right] == CLASSES.index(thing.shape)
        assert inside[top, left:right].any()
        assert inside[top:bottom, left].any()
        assert not (seen & inside).any(), "things do not touch"
        seen |= inside
        assert ("left" in thing.place) == (thing.column < 200 / 3)
        assert ("bottom" in thing.place) == (thing.row >= 100)
    assert (scene.mask[~seen] == 0).all()


@pytest.mark.parametrize("color", COLORS)
def test_things_have_the_color_of_their_name(color):
    scene = next(s for s in (draw_scene(seed, 1) for seed in range(200)) if s.things[0].color == color)
    brightest = np.percentile(scene.image[scene.mask > 0], 80, axis=0)
    distances = {name: np.abs(brightest - value).sum() for name, value in COLORS.items()}
    assert min(distances, key=distances.get) == color


def test_numbers_and_sizes_can_be_chosen():
    scenes = [draw_scene(seed, things=2, sizes=("small",)) for seed in range(20)]
    assert {thing.size for scene in scenes for thing in scene.things} == {"small"}
    assert {len(scene.things) for scene in scenes} == {2}
    assert {thing.size for seed in range(40) for thing in draw_scene(seed).things} == set(RADII)


def test_captions_name_every_attribute():
    for seed in range(30):
        scene = draw_scene(seed)
        for thing in scene.things:
            for word in (thing.shape, thing.color, thing.size, thing.place):
                assert word in scene.caption
            assert (thing.texture in scene.caption) or thing.texture == "plain"


def test_answers_are_right_and_every_kind_is_asked():
    asked, rng = set(), np.random.default_rng(0)
    for seed in range(150):
        scene = draw_scene(seed)
        for question in ask_about(scene, rng, 6):
            asked.add(question.kind)
            named = [thing for thing in scene.things if thing.name in question.prompt]
            if question.kind == "count":
                assert question.answer == NUMBERS[len(scene.things)]
            elif question.kind == "exists":
                assert (question.answer == "yes") == bool(named)
            elif question.kind == "where":
                assert [thing.place for thing in named] == [question.answer]
            elif question.kind == "color":
                assert [t.color for t in scene.things if t.shape in question.prompt] == [question.answer]
            elif question.kind == "corners" and len(scene.things) == 1:
                assert question.answer == CORNERS[scene.things[0].shape]
            elif question.kind == "relation":
                check_relation(question, named)
    assert asked == set(KINDS)


def check_relation(question, named):
    first, second = sorted(named, key=lambda thing: question.prompt.index(thing.name))
    holds = {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }
    [relation] = [word for word in holds if f" {word} " in question.prompt]
    assert (question.answer == "yes") == holds[relation]


def test_ambiguous_questions_are_not_asked():
    rng = np.random.default_rng(0)
    for seed in range(300):
        scene = draw_scene(seed, things=4)
        shapes = [thing.shape for thing in scene.things]
        for question in ask_about(scene, rng, 4, kinds=("color",)):
            assert sum(shape in question.prompt for shape in shapes) == 1


def test_kinds_can_be_chosen():
    questions = ask_about(draw_scene(1, 1), np.random.default_rng(0), 8, kinds=("shape", "count"))
    assert {question.kind for question in questions} == {"shape", "count"}
    assert {q.answer for q in questions if q.kind == "shape"} <= set(SHAPES)
