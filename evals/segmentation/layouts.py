"""The folder layouts in which data sets are published, and the one for any other: a folder of images, one of masks."""

from itertools import product
from typing import Literal

from evals.segmentation import class_names
from evals.segmentation.labels import ClassMap
from evals.segmentation.pairs import Layout, Part

LayoutName = Literal["folder", "ade20k", "cityscapes", "voc2012", "voc2012aug", "context59", "context60", "cocostuff"]


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
        ClassMap.of(class_names.ADE20K, first_id=1, ignored=(0,)),
        ("ADEChallengeData2016",),
    ),
    "cityscapes": Layout(
        _cityscapes("train"),
        _cityscapes("val"),
        ClassMap(
            dict.fromkeys((*range(34), 255), None) | dict(zip(_CITYSCAPES_IDS, class_names.CITYSCAPES, strict=True))
        ),
    ),
    "voc2012": Layout([[_voc("train")]], [[_voc("val")]], ClassMap.of(class_names.VOC2012), _VOC_FOLDERS),
    "voc2012aug": Layout(
        [[_voc("trainaug", "SegmentationClassAug")], [_voc("train"), _voc("aug", "SegmentationClassAug")]],
        [[_voc("val")]],
        ClassMap.of(class_names.VOC2012),
        _VOC_FOLDERS,
    ),
    "context59": _context(ClassMap.of(class_names.PASCAL_CONTEXT, 1, (0, 255))),
    "context60": _context(ClassMap.of(("background", *class_names.PASCAL_CONTEXT))),
    "cocostuff": Layout(
        _coco("train2017"),
        _coco("val2017"),
        ClassMap(
            {255: None} | dict(zip((i for i in range(182) if i not in _COCO_GAPS), class_names.COCO_STUFF, strict=True))
        ),
    ),
}
