"""What tokens of the training of `sail-tiny` are to know: what patches show, and at which things texts look."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from evals.scenes import BACKGROUNDS, COLORS, RADII, SHAPES, TEXTURES, Scene
from sail_encoder.models.pixel_sail.tokens import SEG
from tools.tiny_texts import CAPTION, EXISTS, MASK, Conversation, Turn

NAMING: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "color": tuple(COLORS),
    "texture": TEXTURES,
    "size": tuple(RADII),
}
"""What things are named by, each with its words."""

PARTS = 9
"""Parts into which an image is divided, downwards and across, to tell where a thing is."""

ATTRIBUTES = {**{name: len(words) for name, words in NAMING.items()}, "row": PARTS, "column": PARTS}
"""What is to be learned of the thing in a patch, each with the number of its values."""

Aim = tuple[int, tuple[int, ...]]
"""Position of a token, and the numbers of the things that it is to look at; none if there is nothing of the kind."""


class Aims(NamedTuple):
    """Tokens that are to look at things.

    Attributes:
        places: Text and position of each, int64 [aims, 2].
        shares: How much of its things each patch shows, or of the background if there are none, the most being 1,
            [aims, patches].
        named: Attributes that the text names them by, int64 [aims, `NAMING`], -100 where by none.
        known: What these things are, as far as it is one, int64 [aims, `ATTRIBUTES`], -100 else.
    """

    places: Tensor
    shares: Tensor
    named: Tensor
    known: Tensor


def collect_aims(
    tokenizer: PreTrainedTokenizerFast,
    asked: list[tuple[Scene, Tensor, list[Turn]]],
    texts: list[Conversation],
    rng: Generator,
) -> Aims:
    """Finds the tokens of texts that are to look at things.

    Args:
        tokenizer: The tokenizer.
        asked: Of each text its scene, the share of each patch that each thing covers, and its turns.
        texts: Their tokens.
        rng: Chooses among the tokens of captions.
    """
    places, shares, named, known = [], [], [], []
    for row, ((scene, covered, turns), text) in enumerate(zip(asked, texts, strict=True)):
        for start, turn, of_turn in split_turns(tokenizer, turns, text):
            for position, meant in aims_of(tokenizer, turn, of_turn, len(scene.things), rng):
                places.append((row, start + position))
                # Where there is nothing of the kind, it is the background, so that nothing of a thing is read there.
                share = covered[list(meant)].sum(dim=0) if meant else 1 - covered.sum(dim=0)
                shares.append(share / share.amax().clamp(min=1e-6))
                common = attributes_in_common(scene, meant)
                named.append(label_named(turn, common))
                known.append(common)
    return Aims(
        torch.tensor(places, dtype=torch.long).view(-1, 2),
        torch.stack(shares) if shares else torch.zeros(0, asked[0][1].shape[1]),
        torch.tensor(named, dtype=torch.long).view(-1, len(NAMING)),
        torch.tensor(known, dtype=torch.long).view(-1, len(ATTRIBUTES)),
    )


def split_turns(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn], text: Conversation
) -> Iterator[tuple[int, Turn, Conversation]]:
    """Where each turn begins in the tokens of its text, and which are its own."""
    ids, labels = text
    start = 1
    for turn in turns:
        end = ids.index(tokenizer.eos_token_id, start) + 1
        yield start, turn, (ids[start:end], labels[start:end])
        start = end


def aims_of(
    tokenizer: PreTrainedTokenizerFast, turn: Turn, tokens: Conversation, things: int, rng: Generator
) -> list[Aim]:
    """Tokens of a turn that are to look at things, and at which.

    They are the names of a comparison, one token of each part of a caption, and else the one before the answer, with
    the one that stands for a mask, of questions that are about certain things or about whether they are there.

    Args:
        tokenizer: The tokenizer.
        turn: The turn.
        tokens: Its tokens.
        things: How many things the scene shows.
        rng: Chooses among the tokens of a caption: all together would count more than all that is asked.
    """
    ids, labels = tokens
    before = next(place for place, label in enumerate(labels) if label != -100) - 1
    if turn.compared:
        shapes = set(tokenizer.convert_tokens_to_ids([f"\u0120{shape}" for shape in SHAPES]))
        names = [position for position, token in enumerate(ids[:before]) if token in shapes]
        return [(place, (number,)) for place, number in zip(names[-len(turn.compared) :], turn.compared, strict=True)]
    if turn.kind == CAPTION:
        # What follows a comma or "and" is about the next thing.
        joints = set(tokenizer.convert_tokens_to_ids([",", "\u0120and"]))
        ends = [place for place, token in enumerate(ids) if place > before and token in joints]
        starts = [before, *ends, len(ids) - 2]
        return [(int(rng.integers(starts[number], starts[number + 1])), (number,)) for number in range(things)]
    if not turn.targets:
        return [(before, ())] if turn.kind in (MASK, EXISTS) else []
    asking = [before, ids.index(tokenizer.convert_tokens_to_ids(SEG))] if turn.kind == MASK else [before]
    return [(place, turn.targets) for place in asking]


def attributes_of(scene: Scene, number: int) -> list[int]:
    """The `ATTRIBUTES` of a thing as numbers."""
    thing = scene.things[number]
    height, width = scene.mask.shape
    words = [words.index(getattr(thing, name)) for name, words in NAMING.items()]
    return [*words, int(PARTS * thing.row / height), int(PARTS * thing.column / width)]


def attributes_in_common(scene: Scene, things: tuple[int, ...]) -> list[int]:
    """The `ATTRIBUTES` of several things as numbers, -100 where they differ or there is no thing."""
    if not things:
        return [-100] * len(ATTRIBUTES)
    values = zip(*(attributes_of(scene, number) for number in things), strict=True)
    return [first if all(other == first for other in others) else -100 for first, *others in values]


def label_named(turn: Turn, attributes: list[int]) -> list[int]:
    """Attributes that a question names, as numbers, -100 where it names none: those of its things, if there are any."""
    words = set(re.findall("[a-z]+", turn.prompt))
    labels = []
    for value, names in zip(attributes, NAMING.values(), strict=False):  # where they are has no name
        said = [number for number, name in enumerate(names) if name in words]
        meant = [value] if turn.targets or turn.compared else said[:1]
        labels += [number for number in meant if number in said] or [-100]
    return labels


def label_patches(scene: Scene, shares: Tensor) -> Tensor:
    """Attributes of what fills most of each patch, int64 [patches, attributes and background], -100 where it has none.

    Args:
        scene: What is shown.
        shares: How much of each patch each thing covers, [things, patches].
    """
    share, thing = shares.max(dim=0)
    attributes = torch.tensor([attributes_of(scene, number) for number in range(len(scene.things))])
    labels = attributes[thing].masked_fill((share < 0.5)[:, None], -100)
    background = torch.full_like(thing, BACKGROUNDS.index(scene.background)).masked_fill(shares.sum(0) > 0, -100)
    return torch.cat((labels, background[:, None]), dim=1)
