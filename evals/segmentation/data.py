"""A data set for segmentation: images, masks, and what the ids in the masks mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evals.errors import DatasetError
from evals.segmentation.labels import INVALID, ClassMap
from evals.segmentation.layouts import LayoutName
from evals.segmentation.pairs import Sample
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.io.errors import ImageError
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
    """What is wrong with a mask whose pixels are neither 8-bit levels nor palette indices, from its header alone."""
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
