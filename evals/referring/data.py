"""Data sets of referring expressions: drawn scenes, and the published files of RefCOCO and its relatives."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from evals.errors import DatasetError
from evals.referring.published import PublishedExpressions
from evals.scene_expressions import Expression, draw_thing_masks, refer_to_things
from evals.scenes import TRAINING_SEEDS, draw_scene
from sail_encoder.images.decoding import Array
from sail_encoder.io.fingerprints import digest

SCENES = "scenes-referring"
"""What stands for drawn scenes in place of a folder of data."""

TRAIN_SPLIT, VAL_SPLIT = "train", "val"
ALL = "all"
"""Stands for all splits but that of training."""

SEVERAL = (2, 3, 4)
"""How many things these scenes show."""

SCENE_SPLITS = {
    "train": range(TRAINING_SEEDS.start + 10**9, TRAINING_SEEDS.start + 10**9 + 10**6),
    "val": range(130_000, 130_200),
}
"""Seeds of the scenes of each split; none that `sail-tiny` was trained on."""

_MOST_EXPRESSIONS = 4
"""Expressions about a scene."""


Shown = tuple[Image.Image, Sequence[Expression], Array]
"""An image, what is said about it, and what that means: masks, bool [expressions, height, width], each with all targets
of an expression, empty where it has none.
"""


class ReferringData(Protocol):
    """One split of a data set.

    Attributes:
        identity: Name of all that decides its images and expressions.
    """

    identity: str

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> Shown:
        """One image with its expressions and masks; may be called in threads.

        Raises:
            DatasetError: If it cannot be read.
        """


class SceneExpressions:
    """Expressions about drawn scenes of several things; a scene and what is said of it are functions of its seed.

    Args:
        split: A key of `SCENE_SPLITS`.
    """

    def __init__(self, split: str) -> None:
        self.seeds = SCENE_SPLITS[split]
        self.identity = f"{SCENES}, seeds {self.seeds.start} to {self.seeds.stop - 1}"

    def __len__(self) -> int:
        return len(self.seeds)

    def read(self, index: int) -> Shown:
        seed = self.seeds[index]
        scene = draw_scene(seed, SEVERAL)
        rng = np.random.default_rng((17, seed))
        drawn = refer_to_things(scene, rng, _MOST_EXPRESSIONS)
        # Things that are alike in all respects are only spoken of together.
        expressions = drawn or [Expression("all things", tuple(range(len(scene.things))), "all")]
        things = draw_thing_masks(scene)
        masks = np.stack([things[list(expression.targets)].any(axis=0) for expression in expressions])
        return Image.fromarray(scene.image), expressions, masks


def open_splits(data: str, *splits: str) -> dict[str, ReferringData]:
    """Opens splits of a data set, by their names.

    Args:
        data: `scenes-referring`, or a folder with the published files, or one of its files of expressions.
        splits: Which; `all` stands for all but that of training.

    Raises:
        DatasetError: If there is no such data set, it has no such split, or something is wrong with it.
    """
    published = None if data == SCENES else PublishedExpressions.find(data)
    known = list(SCENE_SPLITS) if published is None else published.splits
    names = [name for name in known if name != TRAIN_SPLIT] if ALL in splits else splits
    if unknown := [name for name in names if name not in known]:
        raise DatasetError(f"{data} has no split '{unknown[0]}'; it has {', '.join(known)}")
    if not names:
        raise DatasetError(f"{data} has no split but {TRAIN_SPLIT}; use --split {TRAIN_SPLIT}")
    if published is None:
        return {name: SceneExpressions(name) for name in names}
    return {name: PublishedSplit(published, name) for name in names}


class PublishedSplit:
    """One split of a published data set.

    Args:
        published: Its files.
        split: The split.
    """

    def __init__(self, published: PublishedExpressions, split: str) -> None:
        self.published = published
        self.images = published.images_of(split)
        said = [[number, [[one.text, one.targets] for one in expressions]] for number, expressions in self.images]
        meant = {target for _, expressions in self.images for one in expressions for target in one.targets}
        masks = [published.annotations[target] for target in sorted(meant)]
        self.identity = f"{published.path.name}, {split}: {len(said)} images, {digest([said, masks], 12)}"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Shown:
        number, expressions = self.images[index]
        image = self.published.read_image(number)
        # Several expressions mean the same.
        masks = {targets: self.published.mask_of(number, targets) for targets in {one.targets for one in expressions}}
        return image, expressions, np.stack([masks[one.targets] for one in expressions])
