"""The folder layouts in which data sets are published, and the one for any other: a folder of images, one of masks."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from evals.errors import DatasetError
from evals.scenes import CLASSES, draw_scene
from evals.segmentation.data import Inspected, SegmentationData, check_samples, highest_id, inspect_samples
from evals.segmentation.labels import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    HIGHEST_ID,
    PASCAL_CONTEXT,
    VOC2012,
    ClassMap,
    read_lines,
)
from evals.segmentation.pairs import Layout, LayoutName, Part, SplitName
from sail_encoder.io.devices import count_readers
from sail_encoder.io.files import replacing


def _voc(listing: str, masks: str = "SegmentationClass", lists: str = "Segmentation") -> Part:
    return Part("JPEGImages", masks, f"ImageSets/{lists}/{listing}.txt")


def _context(class_map: ClassMap) -> Layout:
    train, val = (_voc(split, "SegmentationClassContext", "SegmentationContext") for split in ("train", "val"))
    return Layout([[train]], [[val]], class_map, ("VOCdevkit/VOC2010", "VOC2010"))


def _cityscapes(split: str) -> list[list[Part]]:
    return [[Part(f"leftImg8bit/{split}", f"gtFine/{split}", None, "_leftImg8bit", "_gtFine_labelIds")]]


def _coco(split: str) -> list[list[Part]]:
    places = product(("images/", ""), ("annotations/", "stuffthingmaps/"))
    return [[Part(f"{images}{split}", f"{masks}{split}")] for images, masks in places]


def _folder(*splits: str) -> list[list[Part]]:
    return [
        [Part(f"images/{split}", f"{masks}/{split}")]
        for masks, split in product(("masks", "annotations", "labels"), splits)
    ]


_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Ids of COCO that no image has."""

_VOC_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012")
LAYOUTS: dict[LayoutName, Layout] = {
    "folder": Layout(_folder("train", "training"), _folder("val", "validation", "valid", "test")),
    "ade20k": Layout(
        [[Part("images/training", "annotations/training")]],
        [[Part("images/validation", "annotations/validation")]],
        ClassMap.of(ADE20K, first_id=1, ignored=(0,)),
        ("ADEChallengeData2016",),
    ),
    "cityscapes": Layout(
        _cityscapes("train"),
        _cityscapes("val"),
        ClassMap(dict.fromkeys((*range(34), 255), None) | dict(zip(_CITYSCAPES_IDS, CITYSCAPES, strict=True))),
    ),
    "voc2012": Layout([[_voc("train")]], [[_voc("val")]], ClassMap.of(VOC2012), _VOC_FOLDERS),
    "voc2012aug": Layout(
        [[_voc("trainaug", "SegmentationClassAug")], [_voc("train"), _voc("aug", "SegmentationClassAug")]],
        [[_voc("val")]],
        ClassMap.of(VOC2012),
        _VOC_FOLDERS,
    ),
    "context59": _context(ClassMap.of(PASCAL_CONTEXT, 1, (0, 255))),
    "context60": _context(ClassMap.of(("background", *PASCAL_CONTEXT))),
    "cocostuff": Layout(
        _coco("train2017"),
        _coco("val2017"),
        ClassMap({255: None} | dict(zip((i for i in range(182) if i not in _COCO_GAPS), COCO_STUFF, strict=True))),
    ),
}


CLASS_FILE = "classes.txt"
"""In the folder of a data set: the names of its classes, one a line, in the order of their ids."""


@dataclass(frozen=True)
class DataSource:
    """Place of a data set and the way to read it.

    Attributes:
        root: Its folder.
        layout: A key of `LAYOUTS`.
        class_map: A file that says which class each id stands for, see `ClassMap.read`.
        reduce_zero_label: Whether 0 does not count and classes start at 1.
        ignore_label: The id of pixels that do not count.

    Raises:
        DatasetError: If these contradict each other.
    """

    root: str
    layout: LayoutName = "folder"
    class_map: str | None = None
    reduce_zero_label: bool = False
    ignore_label: int = 255

    def __post_init__(self) -> None:
        if not 0 <= self.ignore_label <= HIGHEST_ID:
            raise DatasetError(f"--ignore_label cannot be {self.ignore_label}; allowed is 0 to {HIGHEST_ID}")
        if self.class_map is not None and (self.reduce_zero_label or self.ignore_label != 255):
            raise DatasetError(
                "--class_map says itself which ids do not count, so --reduce_zero_label and --ignore_label have no "
                f"effect beside it; leave them out, and map these ids to null in {self.class_map}"
            )

    def check_place(self, *splits: SplitName) -> None:
        """Makes sure that the folders of these splits are there; nothing in them is looked at.

        Raises:
            DatasetError: If they are not.
        """
        for split in splits:
            LAYOUTS[self.layout].find(self.root, split)

    def open(
        self, *splits: SplitName, check: bool = True, classes: Sequence[str] = (), ids: ClassMap | None = None
    ) -> list[SegmentationData]:
        """Finds the samples of these splits, and looks through them before any work starts.

        Args:
            splits: Which parts.
            check: Whether to look through all images and masks.
            classes: Their names, where neither the user nor the layout says what they are.
            ids: What the ids mean, unless the user or the names in a `classes.txt` say otherwise.

        Raises:
            DatasetError: If something is wrong with them.
        """
        if ids is None:
            self._refuse_ade20k(splits)
        found = [LAYOUTS[self.layout].list_samples(self.root, split) for split in splits]
        inspected = inspect_samples([sample for samples in found for sample in samples]) if check else []
        class_map = self._known_classes(classes, ids) or self._derive_classes(inspected)
        check_samples(inspected, class_map)
        return [SegmentationData(samples, class_map, self.layout) for samples in found]

    def _refuse_ade20k(self, splits: Sequence[SplitName]) -> None:
        """Refuses ADE20K's own folders as a plain folder, in which 0 would be a class and all others be shifted."""
        if self.layout != "folder" or self.class_map is not None or self.reduce_zero_label:
            return
        for split in splits:
            _, parts = LAYOUTS["folder"].find(self.root, split)
            if parts in LAYOUTS["ade20k"].ways(split):
                raise DatasetError(
                    f"{self.root}/{parts[0].masks} is a name of ADE20K, where 0 does not count and classes start at 1; "
                    "use --layout ade20k, or --class_map FILE if its ids mean something else"
                )

    def _known_classes(self, default: Sequence[str], ids: ClassMap | None) -> ClassMap | None:
        """The class map that the user, a `classes.txt`, the layout or the caller gives, in this order."""
        if self.class_map is not None:
            return ClassMap.read(self.class_map)
        own = LAYOUTS[self.layout].class_map
        names = self._read_names()
        if ids is not None and names in ([], ids.names):
            return ids
        if names:
            zero_is_ignored = own is not None and own.ids[0] is None
            return self._number(names, self.reduce_zero_label or zero_is_ignored)
        if own is not None and (self.reduce_zero_label or self.ignore_label != 255):
            raise DatasetError(f"the layout {self.layout} has a class map of its own; change it with --class_map FILE")
        return self._number(default, self.reduce_zero_label) if own is None and default else own

    def _read_names(self) -> list[str]:
        path = Path(self.root) / CLASS_FILE
        if not path.is_file():
            return []
        names = read_lines(path)
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise DatasetError(f"{path} names '{repeated[0]}' twice; to join ids into one class use --class_map")
        return names

    def _derive_classes(self, inspected: list[Inspected]) -> ClassMap:
        """One class for each id up to the highest that occurs."""
        if not inspected:
            raise DatasetError(
                f"the classes are not known; write their names to {self.root}/{CLASS_FILE}, or use --check true"
            )
        ignored = {self.ignore_label} | ({0} if self.reduce_zero_label else set())
        highest = highest_id(inspected, ignored)
        first = 1 if self.reduce_zero_label else 0
        if highest == first:
            raise DatasetError(
                f"the masks have only id {first} besides those that do not count; if {self.ignore_label} is a class "
                'here, use --class_map with {"0": "background", "255": "object"} or the like'
            )
        return self._number([f"class {key}" for key in range(first, highest + 1)], self.reduce_zero_label)

    def _number(self, names: Sequence[str], reduce_zero: bool) -> ClassMap:
        return ClassMap.of(names, int(reduce_zero), (self.ignore_label, 0) if reduce_zero else (self.ignore_label,))


SCENES: dict[str, int | tuple[int, ...]] = {"scenes": 1, "scenes-several": (1, 2, 3, 4)}
"""What stands for drawn scenes in place of a folder of data, and how many things they show."""

SPLITS = {"training": range(100_000, 101_200), "validation": range(110_000, 110_200)}
"""Seeds of the scenes of each split; none that `sail-tiny` was trained on."""


def draw_scenes(folder: Path, name: str) -> None:
    """Draws the images that are missing, with masks in which 0 does not count and the classes start at 1.

    Args:
        folder: Where they go, in the layout of ADE20K.
        name: One of `SCENES`.
    """
    things = SCENES[name]
    missing = [
        (folder, split, seed)
        for split, seeds in SPLITS.items()
        for seed in seeds
        if not _mask(folder, split, seed).exists()
    ]
    for split in SPLITS:
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
    with replacing(folder / CLASS_FILE) as unfinished:
        unfinished.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    with ThreadPoolExecutor(count_readers(), "draw") as pool:
        list(tqdm(pool.map(partial(_draw, things), missing), "drawing", len(missing), unit="scene", disable=None))


def _mask(folder: Path, split: str, seed: int) -> Path:
    return folder / "annotations" / split / f"scene_{seed}.png"


def _draw(things: int | tuple[int, ...], missing: tuple[Path, str, int]) -> None:
    """Draws one scene; the mask, which says that it is done, comes last."""
    folder, split, seed = missing
    scene = draw_scene(seed, things)
    mask = _mask(folder, split, seed)
    _save(Image.fromarray(scene.image), folder / "images" / split / mask.name)
    _save(Image.fromarray(scene.mask + 1), mask)


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as unfinished:
        image.save(unfinished)
