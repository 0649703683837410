"""From the ids in a mask to the classes that a head learns, and to the colors that people see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from evals.errors import DatasetError
from heads.dense import IGNORE
from sail_encoder.images.decoding import Array
from sail_encoder.io.files import read_json, read_text

INVALID = -1
"""What an id becomes that the class map does not know."""

HIGHEST_ID = 255
"""In masks of 8 bits."""


@dataclass(frozen=True)
class ClassMap:
    """Classes that the ids in a mask stand for.

    Attributes:
        ids: The name of the class of each known id, None where its pixels do not count. Several ids may share a name.
    """

    ids: Mapping[int, str | None]

    def __post_init__(self) -> None:
        if len(self.names) > IGNORE:
            raise DatasetError(
                f"{len(self.names)} classes are too many; allowed are {IGNORE}, because masks have 8 bits"
            )

    @classmethod
    def of(cls, names: Sequence[str], first_id: int = 0, ignored: Sequence[int] = (IGNORE,)) -> "ClassMap":
        """Consecutive ids. `first_id=1` with 0 among the ignored is what others call "reduce zero label".

        Raises:
            DatasetError: If there are more names than ids.
        """
        last_id = HIGHEST_ID - (HIGHEST_ID in ignored)
        if first_id + len(names) > last_id + 1:
            raise DatasetError(
                f"{len(names)} classes are too many; their ids would run from {first_id} on, and {last_id} is the "
                "highest that can be a class; join some with --class_map"
            )
        ids: dict[int, str | None] = {first_id + index: name for index, name in enumerate(names)}
        return cls(ids | dict.fromkeys(ignored))

    @classmethod
    def read(cls, path: str | Path) -> "ClassMap":
        """Reads a class map: JSON with the name of each id, or null where its pixels do not count.

        Raises:
            DatasetError: If the file is something else.
        """
        try:
            raw = read_json(Path(path))
            ids = {int(key): name for key, name in raw.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise DatasetError(
                f'{path} is no class map ({error}); write {{"0": null, "1": "road", "2": "car"}}'
            ) from None
        wrong = [
            f"{key}: {name}"
            for key, name in ids.items()
            if not (0 <= key <= HIGHEST_ID and isinstance(name, str | None))
        ]
        if wrong:
            raise DatasetError(f"{path} maps {wrong[0]}; ids run from 0 to {HIGHEST_ID}, and names are text or null")
        if not any(name is not None for name in ids.values()):
            raise DatasetError(f'{path} names no class; write {{"0": null, "1": "road", "2": "car"}}')
        return cls(ids)

    @cached_property
    def names(self) -> list[str]:
        """The classes, in the order of the ids that first name them."""
        return list(dict.fromkeys(name for _, name in sorted(self.ids.items()) if name is not None))

    @cached_property
    def table(self) -> Array:
        """int16 [256]: for each id its class, `IGNORE` or `INVALID`."""
        table = np.full(HIGHEST_ID + 1, INVALID, np.int16)
        for key, name in self.ids.items():
            table[key] = IGNORE if name is None else self.names.index(name)
        return table


def palette(names: Sequence[str]) -> Array:
    """A color for each class, uint8 [classes, 3]: the color map of the Pascal VOC development kit.

    That map begins with black, which is kept for a class called background.
    """
    shift = 0 if names and names[0] == "background" else 1
    index = np.arange(len(names)) + shift
    colors = np.zeros((len(names), 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, empty ones left out.

    Raises:
        DatasetError: If it cannot be read as text.
    """
    try:
        lines = read_text(path, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({error}); save it as UTF-8") from None
    return [line.strip() for line in lines if line.strip()]


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


ADE20K = _names(
    """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest
    of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool
    table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus,
    towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
    apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer
    belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle,
    oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board,
    shower, radiator, glass, clock, flag
    """
)
"""The 150 of the scene parsing challenge (objectInfo150.txt, first word of each), ids 1 to 150."""

CITYSCAPES = _names(
    """
    road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider,
    car, truck, bus, train, motorcycle, bicycle
    """
)
"""The 19 that are evaluated."""

VOC2012 = _names(
    """
    background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
    person, pottedplant, sheep, sofa, train, tvmonitor
    """
)
"""The background and the 20 of Pascal VOC, ids 0 to 20."""

PASCAL_CONTEXT = _names(
    """
    aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
    ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
    keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
    sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window, wood
    """
)
"""The 59 most frequent of Pascal Context, ids 1 to 59; 0 is the background."""

COCO_STUFF = _names(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage,
    cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff,
    dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other,
    fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss,
    mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing,
    railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs,
    stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete,
    wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other,
    wood
    """
)
"""The 171 of COCO-Stuff: 80 things and 91 kinds of stuff."""
