"""Questions about drawn scenes, with the answers that the drawing makes certain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from evals.scenes import COLORS, SHAPES, Scene, Thing, with_article

CAPTION_PROMPT = "Describe the image."
NUMBERS = ("zero", "one", "two", "three", "four")
CORNERS = {
    "circle": "zero",
    "square": "four",
    "triangle": "three",
    "star": "ten",
    "cross": "twelve",
    "ring": "zero",
    "heart": "one",
    "arrow": "seven",
}


@dataclass(frozen=True)
class Question:
    """A question, its answer, and what kind of question it is (a key of `KINDS`)."""

    prompt: str
    answer: str
    kind: str


def ask_about(scene: Scene, rng: Generator, count: int, kinds: Sequence[str] | None = None) -> list[Question]:
    """Asks up to `count` questions of random kinds, of all `KINDS` where none are given; a kind that the scene cannot
    answer for certain is passed over, as is a repetition.
    """
    questions: dict[str, Question] = {}
    for kind in rng.choice(list(kinds or KINDS), size=4 * count):
        pair = KINDS[kind](scene, rng)
        if pair and len(questions) < count:
            questions.setdefault(pair[0], Question(*pair, kind=str(kind)))
    return list(questions.values())


Pair = tuple[str, str] | None


def _shape(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if len(scene.things) == 1:
        return _phrase(rng, "What shape is it?", "Which shape do you see?"), thing.shape
    if not _unique(scene, "color", thing.color):
        return None
    return _phrase(rng, f"What shape is {thing.color}?", f"Which shape is the {thing.color} thing?"), thing.shape


def _color(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if not _unique(scene, "shape", thing.shape):
        return None
    return _phrase(rng, f"What color is the {thing.shape}?", f"Which color is the {thing.shape}?"), thing.color


def _size(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if not _unique(scene, "name", thing.name):
        return None
    return _phrase(rng, f"How big is the {thing.name}?", f"What size is the {thing.name}?"), thing.size


def _texture(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if not _unique(scene, "name", thing.name):
        return None
    return f"What texture does the {thing.name} have?", thing.texture


def _where(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if not _unique(scene, "name", thing.name):
        return None
    return f"Where is the {thing.name}?", thing.place


def _count(scene: Scene, rng: Generator) -> Pair:
    return _phrase(rng, "How many things are there?", "How many shapes do you see?"), NUMBERS[len(scene.things)]


def _exists(scene: Scene, rng: Generator) -> Pair:
    """Half of the answers are yes; a wrong name shares its color or its shape with something that is there."""
    thing = _choose(scene, rng)
    if rng.random() < 0.5:
        return f"Is there {with_article(thing.name)}?", "yes"
    color, shape = (str(rng.choice(list(COLORS))), thing.shape)
    if rng.random() < 0.5:
        color, shape = thing.color, str(rng.choice(SHAPES))
    name = f"{color} {shape}"
    return f"Is there {with_article(name)}?", "yes" if any(other.name == name for other in scene.things) else "no"


def _relation(scene: Scene, rng: Generator) -> Pair:
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    if not (_unique(scene, "name", first.name) and _unique(scene, "name", second.name)):
        return None
    word, gap = [("left of", second.column - first.column), ("above", second.row - first.row)][int(rng.integers(2))]
    if abs(gap) < 0.5 * (first.radius + second.radius):
        return None
    if rng.random() < 0.5:
        word, gap = {"left of": "right of", "above": "below"}[word], -gap
    return f"Is the {first.name} {word} the {second.name}?", "yes" if gap > 0 else "no"


def _at_place(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if not _unique(scene, "place", thing.place):
        return None
    where = "in the center" if thing.place == "center" else f"at the {thing.place}"
    return f"What is {where}?", with_article(thing.name)


def _corners(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if len(scene.things) == 1:
        return "How many corners does it have?", CORNERS[thing.shape]
    if not _unique(scene, "color", thing.color):
        return None
    return f"How many corners does the {thing.color} thing have?", CORNERS[thing.shape]


def _outline(scene: Scene, rng: Generator) -> Pair:
    thing = _choose(scene, rng)
    if not _unique(scene, "color", thing.color):
        return None
    name = "it" if len(scene.things) == 1 else f"the {thing.color} thing"
    if rng.random() < 0.5:
        return f"Is {name} round?", "yes" if thing.shape in ("circle", "ring") else "no"
    return f"Is there a hole in {name}?", "yes" if thing.shape == "ring" else "no"


def _background(scene: Scene, rng: Generator) -> Pair:
    return _phrase(rng, "What is the background like?", "What kind of background is it?"), scene.background


KINDS: dict[str, Callable[[Scene, Generator], Pair]] = {
    "shape": _shape,
    "color": _color,
    "size": _size,
    "texture": _texture,
    "where": _where,
    "count": _count,
    "exists": _exists,
    "relation": _relation,
    "at_place": _at_place,
    "corners": _corners,
    "outline": _outline,
    "background": _background,
}
"""How to ask each kind of question: (scene, rng) -> (prompt, answer), or None where the answer would be ambiguous."""


def _choose(scene: Scene, rng: Generator) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


def _phrase(rng: Generator, *wordings: str) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _unique(scene: Scene, attribute: str, value: str) -> bool:
    return sum(getattr(thing, attribute) == value for thing in scene.things) == 1
