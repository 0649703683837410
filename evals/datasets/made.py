"""Sets that need no download: the digits of scikit-learn, and drawn scenes."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from evals.datasets.labelled import LabelledImages, MadeImage
from evals.scenes import SHAPES, Scene, draw_scene
from heads.targets import Kind
from sail_encoder.images.decoding import Array
from sail_encoder.images.sources import ImageList

DIGIT_SIDE = 56
"""Side to which the 8x8 digits are enlarged, in pixels."""

SCENE_PARTS = {"train": 500, "val": 100, "test": 300}
"""Scenes of each part; their seeds are below those that `sail-tiny` may be trained on."""


def digits() -> LabelledImages:
    """The 1,797 handwritten digits of scikit-learn; the last third is the test set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    made = [made_image(f"digits/{number:04d}.bmp", partial(_enlarge, digit)) for number, digit in enumerate(pixels)]
    parts = ["train" if number < 1198 else "test" for number in range(len(made))]
    return _labelled("digits", made, labels.astype(str), parts)


def _enlarge(digit: Array) -> Image.Image:
    return Image.fromarray(digit).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)


def scenes(kind: str) -> LabelledImages:
    """Drawn scenes of one thing, or of several for `shapes`.

    Args:
        kind: What is asked of a scene: a key of `SCENE_TARGETS`.
    """
    target, task = SCENE_TARGETS[kind]
    things = (1, 2, 3, 4) if kind == "shapes" else 1
    drawn = [draw_scene(seed, things) for seed in range(sum(SCENE_PARTS.values()))]
    made = [made_image(f"scenes/{kind}/{scene.seed:04d}.bmp", partial(Image.fromarray, scene.image)) for scene in drawn]
    parts = [part for part, count in SCENE_PARTS.items() for _ in range(count)]
    labels = list(SHAPES) if task == "multilabel" else []
    name = "scenes" if kind == "shape" else f"scenes-{kind}"
    return _labelled(name, made, np.array([target(scene) for scene in drawn]), parts, task, labels)


def _shapes(scene: Scene) -> list[int]:
    present = {thing.shape for thing in scene.things}
    return [int(shape in present) for shape in SHAPES]


def _position(scene: Scene) -> list[float]:
    thing = scene.things[0]
    return [thing.row / scene.image.shape[0], thing.column / scene.image.shape[1]]


SCENE_TARGETS: dict[str, tuple[Callable[[Scene], Any], Kind]] = {
    "shape": (lambda scene: scene.things[0].shape, "classification"),
    "color": (lambda scene: scene.things[0].color, "classification"),
    "shapes": (_shapes, "multilabel"),
    "position": (_position, "regression"),
}
"""What may be asked of scenes: the shape or the color of the one thing, which shapes there are, where the thing is."""

MADE: dict[str, Callable[[], LabelledImages]] = {
    "digits": digits,
    **{f"scenes-{kind}" if kind != "shape" else "scenes": partial(scenes, kind) for kind in SCENE_TARGETS},
}


def made_image(key: str, draw: Callable[[], Image.Image]) -> MadeImage:
    """An image that is drawn when it is opened."""
    return MadeImage(key=key, path=key, size=0, make=partial(_encode, draw))


def _encode(draw: Callable[[], Image.Image]) -> bytes:
    buffer = io.BytesIO()
    draw().save(buffer, "BMP")
    return buffer.getvalue()


def _labelled(
    name: str, made: list[MadeImage], targets: Array, parts: list[str], task: Kind = "classification", labels: Any = ()
) -> LabelledImages:
    keys = [image.key for image in made]
    return LabelledImages(name, ImageList(name, list(made)), keys, targets, parts, task, list(labels))
