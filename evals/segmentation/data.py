"""A data set for segmentation: images, masks, and what the ids in the masks mean."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from evals.errors import DatasetError
from evals.segmentation.labels import INVALID, ClassMap
from evals.segmentation.pairs import LayoutName, Sample
from sail_encoder.images.decoding import Array, image_size, read_image
from sail_encoder.io.devices import count_readers
from sail_encoder.io.errors import ImageError, in_one_line
from sail_encoder.io.files import open_regular


@dataclass(frozen=True)
class SegmentationData:
    """Samples and their classes.

    Attributes:
        samples: Images with their masks.
        class_map: Which class each id in a mask stands for.
        layout: How the data set is laid out.
    """

    samples: Sequence[Sample]
    class_map: ClassMap
    layout: LayoutName = "folder"

    def __len__(self) -> int:
        return len(self.samples)

    def read_image(self, index: int) -> Image.Image:
        """The image of a sample, 8-bit RGB in stored orientation, as the masks are.

        Raises:
            DatasetError: If it cannot be read.
        """
        try:
            return read_image(self.samples[index].image)[0]
        except ImageError as error:
            raise DatasetError(str(error)) from None

    def read_labels(self, index: int) -> Array:
        """The classes of a sample's pixels, uint8 [height, width], `IGNORE` where they do not count.

        Raises:
            DatasetError: If the mask cannot be read, or holds an id that the class map does not know.
        """
        path = self.samples[index].mask
        ids = read_ids(path)
        labels = self.class_map.table[ids]
        if labels.min(initial=0) == INVALID:
            unknown = np.unique(ids[labels == INVALID])
            raise DatasetError(f"{path} has ids that the class map does not know: {', '.join(map(str, unknown))}")
        return labels.astype(np.uint8)


def read_ids(path: Path) -> Array:
    """The ids in a mask, uint8 [height, width].

    Raises:
        DatasetError: If the file is no mask of 8-bit ids.
    """
    try:
        with open_regular(path) as file, Image.open(file) as mask:
            problem = mask_problem(mask)
            if problem:
                raise DatasetError(f"{path} {problem}")
            return np.asarray(mask)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read ({error})") from None


def mask_problem(mask: Image.Image) -> str | None:
    """Fault of a mask whose pixels are neither 8-bit levels nor palette indices, from its header alone."""
    mode = mask.mode
    if mode == "P":
        return None
    if mode == "L":
        bits = _gray_bits(mask)
        levels = ", ".join(str(level * 255 // (2**bits - 1)) for level in range(3))
        problem = f"has {bits} gray bits a pixel, which read as {levels} and so on; save it as an 8-bit index PNG"
        return None if bits == 8 else problem
    if mode.startswith("I") or mode == "F":
        return "has more than 8 bits a pixel; save ids from 0 to 255 as an 8-bit index PNG"
    if mode == "1":
        return "has 1 bit a pixel, which reads as 0 and 255; save it as an 8-bit index PNG"
    return f"has colors ({mode}) in place of ids; save the id of each color as an 8-bit index PNG"


def _gray_bits(mask: Image.Image) -> int:
    """Bits of a gray pixel in the file; Pillow gives 2 and 4 the mode of 8, and scales their values to 0 to 255."""
    for _, _, _, arguments in getattr(mask, "tile", ()):
        raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
        for bits in (2, 4):
            if str(raw_mode).startswith(f"L;{bits}"):
                return bits
    return 8


_SHOWN = 3
_MANY_MISSING = 10
"""Ids that may be missing below the highest, however few there are."""


Inspected = tuple[Sample, str | None, Mapping[int, int]]
"""A sample; what makes it unusable, as a sentence without its subject, None if nothing does; and how many pixels each
id in its mask has.
"""


def inspect_samples(samples: Sequence[Sample]) -> list[Inspected]:
    """Looks at every image's header and every mask's pixels, in threads."""
    with ThreadPoolExecutor(count_readers(), "inspect") as pool:
        progress = tqdm(pool.map(_inspect, samples), "checking", len(samples), unit="mask", disable=None)
        return list(progress)


def _inspect(sample: Sample) -> Inspected:
    size = image_size(lambda: str(sample.image))
    if size is None:
        return sample, f"has an image that cannot be read ({sample.image})", {}
    try:
        with open_regular(sample.mask) as file, Image.open(file) as mask:
            problem = mask_problem(mask)
            if problem:
                return sample, problem, {}
            if (mask.height, mask.width) != size:
                shapes = f"{mask.width}x{mask.height} for an image of {size[1]}x{size[0]}"
                return sample, f"has a mask of another size than the image ({shapes})", {}
        counts = np.bincount(read_ids(sample.mask).ravel(), minlength=256)
    # Decoders of damaged files raise whatever they stumble over.
    except Exception as error:
        return sample, f"has a mask that cannot be read ({sample.mask}: {in_one_line(error)})", {}
    return sample, None, {int(key): int(counts[key]) for key in np.flatnonzero(counts)}


def check_samples(inspected: Sequence[Inspected], class_map: ClassMap) -> None:
    """Refuses samples that cannot be used.

    Raises:
        DatasetError: If there are any; one line that says of each kind of fault how many samples have it, and which.
    """
    complaints = [*_faults(inspected), *_unknown_ids(inspected, class_map)]
    if complaints:
        raise DatasetError("; ".join(complaints))


def _faults(inspected: Sequence[Inspected]) -> list[str]:
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for sample, fault, _ in inspected:
        if fault:
            alike[fault.partition(" (")[0]].append((sample.name, fault))
    return list(map(_describe, alike.values()))


def _describe(alike: list[tuple[str, str]]) -> str:
    (first, fault), *others = alike
    more = f", and so do {len(others):,} more ({_shorten([name for name, _ in others])})" if others else ""
    return f"{first} {fault}{more}"


def _unknown_ids(inspected: Sequence[Inspected], class_map: ClassMap) -> list[str]:
    pixels: Counter[int] = Counter()
    files: dict[int, list[str]] = defaultdict(list)
    for sample, _, found in inspected:
        for key, count in found.items():
            if class_map.table[key] == INVALID:
                pixels[key] += count
                files[key].append(sample.name)
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

    Ids below it that no mask has are printed, since a stray pixel may have made it the highest.

    Raises:
        DatasetError: If no mask can be used, no pixel counts, or so many ids are missing that the highest is hardly a
            class.
    """
    left_out = set(ignored)
    first_with = {key: sample.mask for sample, _, found in reversed(inspected) for key in found if key not in left_out}
    if not first_with:
        # Masks that cannot be used have no pixels either.
        faults = _faults(inspected) or ["no mask has a pixel that counts; see --ignore_label and --reduce_zero_label"]
        raise DatasetError("; ".join(faults))
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
