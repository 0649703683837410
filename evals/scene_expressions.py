"""Referring expressions about drawn scenes, each with the things that it means, which the drawing makes certain."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from evals.scene_questions import NUMBERS
from evals.scenes import COLORS, SHAPES, Scene, Thing
from sail_encoder.images.decoding import Array

_CLEAR = 0.5
"""Gap, as a share of two radii together, from which one thing is beside another without doubt."""


class Expression(NamedTuple):
    """A referring expression.

    Attributes:
        text: The words.
        targets: What they mean: numbers of things of a scene, or ids of annotations; none where it is not there.
        kind: Kind of expression, a key of `KINDS`, or empty.
    """

    text: str
    targets: tuple[int, ...]
    kind: str = ""


def refer_to_things(scene: Scene, rng: Generator, count: int, kinds: Sequence[str] | None = None) -> list[Expression]:
    """Draws up to `count` expressions of random kinds, of all `KINDS` where none are given.

    A kind for which the scene has no unambiguous expression is passed over, as is a repetition.
    """
    expressions: dict[str, Expression] = {}
    for kind in rng.choice(list(kinds or KINDS), size=6 * count):
        pair = KINDS[kind](scene, rng)
        if pair and len(expressions) < count:
            text, targets = pair
            expressions.setdefault(text, Expression(text, tuple(targets), str(kind)))
    return list(expressions.values())


def draw_thing_masks(scene: Scene) -> Array:
    """Masks of the things of a scene, bool [things, height, width].

    Things do not touch, so that a pixel belongs to the one whose centre is nearest, in units of its radius.
    """
    rows, columns = np.indices(scene.mask.shape)
    distances = [np.hypot(rows - thing.row, columns - thing.column) / thing.radius for thing in scene.things]
    nearest = np.argmin(distances, axis=0)
    masks: Array = (nearest == np.arange(len(scene.things))[:, None, None]) & (scene.mask > 0)
    return masks


Pair = tuple[str, Sequence[int]] | None


def _attribute(scene: Scene, rng: Generator) -> Pair:
    """One thing by some of what is to be seen of it."""
    thing = _choose(scene, rng)
    wordings = [
        (f"the {thing.shape}", ("shape",)),
        (f"the {thing.color} thing", ("color",)),
        (f"the {thing.name}", ("color", "shape")),
        (f"the {thing.size} {thing.shape}", ("size", "shape")),
        (f"the {thing.texture} {thing.shape}", ("texture", "shape")),
    ]
    text, attributes = wordings[int(rng.integers(len(wordings)))]
    alike = _alike(scene, thing, attributes)
    return (text, alike) if len(alike) == 1 else None


def _relation(scene: Scene, rng: Generator) -> Pair:
    """One thing by where it is from another, whose name no other has."""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    if len(_alike(scene, second, ("color", "shape"))) > 1:
        return None
    word = str(rng.choice(list(_GAPS)))
    name, attributes = ((first.shape, ("shape",)), ("thing", ()), (f"{first.color} thing", ("color",)))[rng.integers(3)]
    alike = [index for index in _alike(scene, first, attributes) if scene.things[index] is not second]
    gaps = {index: _GAPS[word](scene.things[index], second) for index in alike}
    meant = [index for index, gap in gaps.items() if gap > 0]
    if len(meant) != 1 or any(abs(gap) < _CLEAR for gap in gaps.values()):
        return None
    return f"the {name} {word} the {second.name}", meant


def _all(scene: Scene, rng: Generator) -> Pair:
    """All things of a kind, of which there are several."""
    name, alike = _group(scene, rng)
    return (f"all {name}s", alike) if len(alike) > 1 else None


def _count(scene: Scene, rng: Generator) -> Pair:
    """The same, with their number."""
    name, alike = _group(scene, rng)
    return (f"the {NUMBERS[len(alike)]} {name}s", alike) if len(alike) > 1 else None


def _nothing(scene: Scene, rng: Generator) -> Pair:
    """Something that the scene lacks, though it may have its color or its shape."""
    thing = _choose(scene, rng)
    color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
    color, shape = ((color, shape), (thing.color, shape), (color, thing.shape))[rng.integers(3)]
    wordings = ((f"the {shape}", {"shape": shape}), (f"the {color} thing", {"color": color}))
    text, words = (*wordings, (f"the {color} {shape}", {"color": color, "shape": shape}))[rng.integers(3)]
    is_there = any(all(getattr(other, name) == word for name, word in words.items()) for other in scene.things)
    return None if is_there else (text, ())


KINDS: dict[str, Callable[[Scene, Generator], Pair]] = {
    "attribute": _attribute,
    "relation": _relation,
    "all": _all,
    "count": _count,
    "nothing": _nothing,
}
"""How to draw each kind of expression: (scene, rng) -> (text, numbers of things), or None where none is unambiguous."""

_GAPS: dict[str, Callable[[Thing, Thing], float]] = {
    "left of": lambda one, other: (other.column - one.column) / (one.radius + other.radius),
    "right of": lambda one, other: (one.column - other.column) / (one.radius + other.radius),
    "above": lambda one, other: (other.row - one.row) / (one.radius + other.radius),
    "below": lambda one, other: (one.row - other.row) / (one.radius + other.radius),
}
"""How far the first thing is in a direction from the second, in units of both radii."""


def _choose(scene: Scene, rng: Generator) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


def _group(scene: Scene, rng: Generator) -> tuple[str, list[int]]:
    thing = _choose(scene, rng)
    names = ((thing.shape, ("shape",)), (f"{thing.color} thing", ("color",)), ("thing", ()))
    name, attributes = names[int(rng.integers(len(names)))]
    return name.replace("cross", "crosse"), _alike(scene, thing, attributes)


def _alike(scene: Scene, thing: Thing, attributes: Sequence[str]) -> list[int]:
    """Numbers of the things that share these attributes with one of them."""
    return [
        index
        for index, other in enumerate(scene.things)
        if all(getattr(other, name) == getattr(thing, name) for name in attributes)
    ]
