"""Looking through a data set before anything is trained on it: what is wrong, where, and how much of it."""

import os
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
from sail_encoder.pixels import image_size

_SHOWN = 3


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
        with Image.open(sample.mask) as mask:
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

    Raises:
        DatasetError: If no pixel counts.
    """
    left_out = set(ignored)
    found = [key for item in inspected for key in item.pixels if key not in left_out]
    if not found:
        raise DatasetError("no mask has a pixel that counts; see --ignore_label and --reduce_zero_label")
    return max(found)
