"""Looking through a data set before anything is trained on it: what is wrong, where, and how much of it."""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from evals.errors import DatasetError
from evals.segmentation.data import mask_problem, read_ids
from evals.segmentation.labels import INVALID, ClassMap
from evals.segmentation.pairs import Sample
from sail_encoder.images.decoding import image_size
from sail_encoder.io.files import open_regular

_SHOWN = 3
_MANY_MISSING = 10
"""Ids that may be missing below the highest, however few there are."""


@dataclass(frozen=True)
class Inspected:
    """What was found in one sample.

    Attributes:
        sample: Which one.
        fault: What makes it unusable, as a sentence without its subject; None if nothing does.
        pixels: How many pixels each id in its mask has.
    """

    sample: Sample
    fault: str | None = None
    pixels: Mapping[int, int] = field(default_factory=dict)


def inspect_samples(samples: Sequence[Sample]) -> list[Inspected]:
    """Looks at every image's header and every mask's pixels, in threads."""
    with ThreadPoolExecutor(os.cpu_count(), "inspect") as pool:
        progress = tqdm(pool.map(_inspect, samples), "checking", len(samples), unit="mask", disable=None)
        return list(progress)


def _inspect(sample: Sample) -> Inspected:
    size = image_size(lambda: str(sample.image))
    if size is None:
        return Inspected(sample, "has an image that cannot be read")
    try:
        with open_regular(sample.mask) as file, Image.open(file) as mask:
            problem = mask_problem(mask)
            if problem:
                return Inspected(sample, problem)
            if (mask.height, mask.width) != size:
                shapes = f"{mask.width}x{mask.height} for an image of {size[1]}x{size[0]}"
                return Inspected(sample, f"has a mask of another size than the image ({shapes})")
        counts = np.bincount(read_ids(sample.mask).ravel(), minlength=256)
    except (DatasetError, OSError):
        return Inspected(sample, "has a mask that cannot be read")
    return Inspected(sample, None, {int(key): int(counts[key]) for key in np.flatnonzero(counts)})


def check_samples(inspected: Sequence[Inspected], class_map: ClassMap) -> None:
    """Refuses samples that cannot be used.

    Raises:
        DatasetError: If there are any; one line that says of each kind of fault how many samples have it, and which.
    """
    faulty: dict[str, list[Inspected]] = defaultdict(list)
    for item in inspected:
        if item.fault:
            faulty[item.fault.partition(" (")[0]].append(item)
    complaints = [*map(_describe, faulty.values()), *_unknown_ids(inspected, class_map)]
    if complaints:
        raise DatasetError("; ".join(complaints))


def _describe(alike: list[Inspected]) -> str:
    first, *others = (item.sample.name for item in alike)
    more = f", and so do {len(others):,} more ({_shorten(others)})" if others else ""
    return f"{first} {alike[0].fault}{more}"


def _unknown_ids(inspected: Sequence[Inspected], class_map: ClassMap) -> list[str]:
    pixels: Counter[int] = Counter()
    files: dict[int, list[str]] = defaultdict(list)
    for item in inspected:
        for key, count in item.pixels.items():
            if class_map.table[key] == INVALID:
                pixels[key] += count
                files[key].append(item.sample.name)
    if not files:
        return []
    each = [
        f"{key} ({pixels[key]:,} pixels in {len(names):,} masks: {_shorten(names)})"
        for key, names in sorted(files.items())
    ]
    return [f"ids that are none of the {len(class_map.names)} classes: {_shorten(each)}; map them with --class_map"]


def _shorten(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")


def highest_id(inspected: Sequence[Inspected], ignored: Iterable[int]) -> int:
    """The highest id in any mask, those that do not count left out.

    Ids below it that no mask has are told, since a stray pixel may have made it the highest.

    Raises:
        DatasetError: If no pixel counts, or so many ids are missing that the highest is hardly a class.
    """
    left_out = set(ignored)
    first_with = {key: item.sample.mask for item in reversed(inspected) for key in item.pixels if key not in left_out}
    if not first_with:
        raise DatasetError("no mask has a pixel that counts; see --ignore_label and --reduce_zero_label")
    highest = max(first_with)
    below = set(range(highest)) - left_out
    missing = len(below - first_with.keys())
    story = (
        f"no mask has {missing} of the {len(below)} ids below {highest}, the highest, which {first_with[highest]} has"
    )
    if missing > _MANY_MISSING and missing > len(below) / 2:
        raise DatasetError(
            f"{story}; use --ignore_label or --class_map if {highest} is no class, or name all classes in classes.txt"
        )
    if missing:
        print(f"{story}; use --ignore_label or --class_map if {highest} is no class", file=sys.stderr)
    return highest
