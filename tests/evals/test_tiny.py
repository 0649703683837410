"""The measurement of sail-tiny, on few scenes and made-up features."""

import re

import numpy as np

from evals import tiny
from evals.scene_expressions import draw_thing_masks
from evals.scene_questions import CAPTION_PROMPT, KINDS, ask_about
from evals.scenes import COLORS, SHAPES, draw_scene
from sail_encoder import Sampling, ask_each, load_chat
from sail_encoder.models.pixel_sail.questions import refer


def made_up(count, seed):
    """Samples of two layers, of which the second tells three classes apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    telling = np.eye(3)[labels] + rng.normal(0, 0.1, (count, 3))
    return [(rng.normal(size=(count, 8)), labels), (telling, labels)]


def test_the_layer_that_knows_is_chosen():
    parts = [made_up(count, seed) for seed, count in enumerate((300, 80, 80))]
    best = tiny.best_layer([[part[layer] for part in parts] for layer in range(2)])
    assert (best.layer, best.value) == (1, 1.0)
    ignorant = tiny.best_layer([[part[0] for part in parts]])
    assert ignorant.value < 0.6


def test_everything_is_measured_and_printed(monkeypatch):
    monkeypatch.setattr(tiny, "PARTS", (range(40), range(40, 50), range(50, 60)))
    monkeypatch.setattr(tiny, "LANGUAGE", range(60, 64))
    results = tiny.measure("sail-tiny")
    assert list(results["probes"]) == ["raw pixels", "random weights", "sail-tiny"]
    assert results["probes"]["sail-tiny"]["color"]["accuracy"] >= 50
    assert {"caption: shape word", "caption: every attribute", "conversation"} <= set(results["language"])
    table = tiny.as_markdown(results)
    assert table.count("\n|") > 8
    for kind, share in results["language"].items():
        assert f"| {tiny.LABELS[kind]} | {share} % |" in table
    for kind in ("color", "shape", "texture"):
        assert f"which {kind}?" in tiny.LABELS[f"question: {kind}"]
    found = results["probes"]["random weights"]
    cells = [f"{found[kind]['accuracy']} % (layer {found[kind]['layer']})" for kind in ("shape", "color")]
    assert f"| random weights | {' | '.join(cells)} |" in table
    assert f"| raw pixels | {results['probes']['raw pixels']['shape']['accuracy']} %" in table


def test_it_sees_colors():
    """The model that is shipped answers what is true, not only what it answered before."""
    chat, short = load_chat("sail-tiny"), Sampling(max_new_tokens=24)
    scenes = [draw_scene(seed, things=1, height=140, width=154) for seed in range(100, 110)]
    true = [scene.things[0].color for scene in scenes]
    assert len(set(true)) >= 4
    answers, captions = [], []
    for scene in scenes:
        question = f"What color is the {scene.things[0].shape}?"
        answer, caption = ask_each(chat, scene.image, [question, CAPTION_PROMPT], short)
        answers.append(answer)
        captions.append(re.findall("|".join(COLORS), caption))
    assert answers[0] == true[0]
    assert sum(map(str.__eq__, answers, true)) >= 8
    assert sum(caption == [color] for caption, color in zip(captions, true, strict=True)) >= 8


def test_every_kind_of_question_has_a_row():
    assert {f"question: {kind}" for kind in KINDS} == {kind for kind in tiny.LABELS if kind.startswith("question")}


def test_a_conversation_is_asked_after_its_caption(monkeypatch):
    """Each question comes after what the model itself has said, and answers count where they are right."""
    monkeypatch.setattr(tiny, "LANGUAGE", range(60, 80))
    rng, truth = np.random.default_rng(0), {}
    for scene in map(draw_scene, tiny.LANGUAGE):
        truth |= {(scene.seed, question.prompt): question.answer for question in ask_about(scene, rng, 4)}
    asked = []

    def ask(talks):
        """Is right, but for questions after a caption about scenes of even seeds."""
        asked.append(talks)
        wrong = [len(said) > 1 and scene.seed % 2 == 0 for scene, said in talks]
        return [
            "wrong" if is_wrong else truth.get((scene.seed, said[-1]), "a thing")
            for (scene, said), is_wrong in zip(talks, wrong, strict=True)
        ]

    judged = list(tiny.judge_answers(ask))
    alone, captions, after = asked
    assert len(alone) == len(truth)
    assert len(captions) == len(after) == 20
    assert all(said == [CAPTION_PROMPT] for _, said in captions)
    assert all(said[:2] == [CAPTION_PROMPT, "a thing"] and len(said) == 3 for _, said in after)
    assert all(right for kind, right in judged if kind != "conversation")
    assert [right for kind, right in judged if kind == "conversation"] == [False, True] * 10


def test_it_segments_what_is_meant_in_a_conversation():
    """After its caption it is asked for a thing that is there, and for one that is not."""
    chat, short = load_chat("sail-tiny"), Sampling(max_new_tokens=64)
    found, declined = [], []
    for seed in range(100, 112):
        scene = draw_scene(seed, things=(2, 3), height=140, width=154)
        alone = [thing for thing in scene.things if [other.name for other in scene.things].count(thing.name) == 1]
        absent = next(shape for shape in SHAPES if shape not in {thing.shape for thing in scene.things})
        chat.reset()
        chat.ask(CAPTION_PROMPT, scene.image, sampling=short)
        answer = chat.ask(refer(f"the {alone[0].name}").strip(), sampling=short)
        mask = draw_thing_masks(scene)[scene.things.index(alone[0])]
        predicted = answer.masks.any(axis=0)
        found.append((mask & predicted).sum() / (mask | predicted).sum() > 0.5)
        declined.append(len(chat.ask(refer(f"the {absent}").strip(), sampling=short).masks) == 0)
    assert sum(found) >= 9
    assert sum(declined) >= 8
