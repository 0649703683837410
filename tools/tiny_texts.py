"""What the training of `sail-tiny` says about a drawn scene, as conversations and as tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evals.scene_expressions import Expression, refer_to_things
from evals.scene_questions import CAPTION_PROMPT, Question, ask_about
from evals.scenes import COLORS, SHAPES, Scene
from sail_encoder.models.pixel_sail.questions import ANSWER, NO_TARGET, refer
from tools import tiny_recipe as recipe

EXPRESSIONS = (*["attribute"] * 4, *["relation"] * 3, "all", "count", "nothing", "nothing")

CAPTION, MASK, RELATION, EXISTS = "caption", "mask", "relation", "exists"
"""Kinds of turns that are treated by themselves."""

Conversation = tuple[list[int], list[int]]
"""Token ids and labels."""


class Turn(NamedTuple):
    """A question about a scene and its answer.

    Attributes:
        prompt: The question.
        answer: The answer.
        kind: Of a question, its kind; else `CAPTION` or `MASK`.
        targets: Numbers of the things that the answer is about, as far as the question says so.
        compared: Numbers of the things that others are compared with, or with each other; their names end the question.
    """

    prompt: str
    answer: str
    kind: str
    targets: tuple[int, ...] = ()
    compared: tuple[int, ...] = ()


def write_about(scene: Scene, rng: Generator, stage: recipe.Stage, form: str) -> list[list[Turn]]:
    """Conversations about a scene, each of which knows nothing of the others."""
    caption = Turn(CAPTION_PROMPT, scene.caption, CAPTION)
    if form == "captions":
        return [[caption]]
    if form == "masks":
        return [[turn] for turn in ask_for_masks(scene, rng, recipe.MASKS_PER_SCENE)] or [[caption]]
    if form == "talks":
        return [write_talk(scene, rng, stage, caption)]
    return [[turn] for turn in ask(scene, rng, stage.questions, stage.kinds)] or [[caption]]


def write_talk(scene: Scene, rng: Generator, stage: recipe.Stage, caption: Turn) -> list[Turn]:
    """Questions and masks in any order, before or after the caption or without it.

    After it answers can be read from it too, as long as it is right.
    """
    turns = [*ask(scene, rng, 3, stage.kinds), *ask_for_masks(scene, rng, 2)]
    turns = [turns[place] for place in rng.permutation(len(turns))]
    where = rng.random()
    return [caption, *turns] if where < 0.5 else [*turns, caption] if where < 0.75 else turns or [caption]


def ask(scene: Scene, rng: Generator, count: int, kinds: Sequence[str]) -> list[Turn]:
    """Up to `count` questions of these kinds."""
    turns = []
    for question in ask_about(scene, rng, count, kinds):
        turn, things = Turn(question.prompt, question.answer, question.kind), things_named(scene, question)
        turns.append(turn._replace(compared=things) if turn.kind == RELATION else turn._replace(targets=things))
    return turns


def ask_for_masks(scene: Scene, rng: Generator, count: int) -> list[Turn]:
    """Up to `count` questions for masks."""
    return [_ask_for(scene, expression) for expression in refer_to_things(scene, rng, count, EXPRESSIONS)]


def _ask_for(scene: Scene, expression: Expression) -> Turn:
    answer = ANSWER if expression.targets else NO_TARGET
    compared = [
        number
        for number, thing in enumerate(scene.things)
        if expression.kind == RELATION and expression.text.endswith(thing.name)
    ]
    return Turn(refer(expression.text).strip(), answer, MASK, expression.targets, tuple(compared))


def things_named(scene: Scene, question: Question) -> tuple[int, ...]:
    """Numbers of the things that a question names by color, shape or both, in the order of a comparison."""
    if question.kind == RELATION:
        places = [(question.prompt.find(thing.name), number) for number, thing in enumerate(scene.things)]
        return tuple(number for place, number in sorted(places) if place >= 0)
    words = set(question.prompt.rstrip("?").split())
    colors, shapes = words & set(COLORS), words & set(SHAPES)
    if not colors and not shapes:
        return ()
    return tuple(
        number
        for number, thing in enumerate(scene.things)
        if (not colors or thing.color in colors) and (not shapes or thing.shape in shapes)
    )


def encode(tokenizer: PreTrainedTokenizerFast, grid: tuple[int, int], turns: list[Turn]) -> Conversation:
    """An image and its turns in the published format; labels are -100 where nothing is learned."""
    image, (ids, labels) = encode_image(tokenizer, grid), encode_text(tokenizer, turns)
    return image + ids, [-100] * len(image) + labels


def encode_image(tokenizer: PreTrainedTokenizerFast, grid: tuple[int, int]) -> list[int]:
    """The tokens of an image of this grid."""
    start, patch, end = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>"])
    return [start, *[patch] * (grid[0] * grid[1]), end]


def encode_text(tokenizer: PreTrainedTokenizerFast, turns: list[Turn]) -> Conversation:
    """What follows the image."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for turn in turns:
        prompt, answer = tokenizer([f"[INST] {turn.prompt} [/INST]", turn.answer], add_special_tokens=False).input_ids
        ids += [*prompt, *answer, tokenizer.eos_token_id]
        labels += [*[-100] * len(prompt), *answer, tokenizer.eos_token_id]
    return ids, labels


def pad(rows: list[Conversation], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and labels, each [rows, longest]."""
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), -100)
    for row, (ids, targets) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(targets)] = torch.tensor(targets)
    return input_ids, labels
