"""Turns images into normalised tiles, as a transformers image processor."""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs
from typing_extensions import Unpack

from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD, Array
from sail_encoder.io.errors import UserError
from sail_encoder.models.image_inputs import ReadingImageProcessor
from sail_encoder.models.sail_vl.tiles import MAX_TILES, TILE_SIZE, count_tiles, tile_image


class SailVLImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Options of `SailVLImageProcessor` beyond those of every image processor."""

    max_tiles: int
    msac: bool


class SailVLImageProcessor(ReadingImageProcessor):
    """Cuts images into square tiles and normalises them with the statistics of ImageNet.

    Gives `pixel_values` [tiles, 3, side, side] of all images and `num_tiles` [images]. The published resizing is
    Pillow's, so there is no other backend.

    Args:
        size: Height and width of a tile, which are equal.
        max_tiles: Tiles of a grid at most; the thumbnail is one more. 1 gives the whole image in one tile, as for the
            frames of a video.
        msac: Whether to add the tiles of a second grid.
        kwargs: Every option of transformers' image processors.
    """

    valid_kwargs = SailVLImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_resize = True
    resample = Image.Resampling.BICUBIC
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_mean = IMAGENET_MEAN
    image_std = IMAGENET_STD
    size = {"height": TILE_SIZE, "width": TILE_SIZE}
    max_tiles = MAX_TILES
    msac = False

    def __init__(self, **kwargs: Unpack[SailVLImageProcessorKwargs]) -> None:  # type: ignore[misc]
        super().__init__(**kwargs)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Tiles of an image of this size in pixels; `images_kwargs` override the processor's own options."""
        options = {"size": self.size, "max_tiles": self.max_tiles, "msac": self.msac, **(images_kwargs or {})}
        side = _tile_size(options["size"])
        return count_tiles((width, height), options["max_tiles"], tile_size=side, msac=options["msac"])

    def _preprocess(
        self,
        images: list[Array],
        size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        max_tiles: int,
        msac: bool,
        return_tensors: str | None,
        **_: Any,
    ) -> BatchFeature:
        side = _tile_size(size)
        tiles, counts = [], []
        for image in images:
            whole = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            cut = [np.asarray(tile) for tile in tile_image(whole, max_tiles, tile_size=side, msac=msac)]
            tiles += cut
            counts.append(len(cut))
        values = np.stack(tiles).transpose(0, 3, 1, 2)
        if do_rescale:
            # Divided by 255, as in the published code, and not multiplied by its inverse, which rounds differently.
            values = values.astype(np.float32) / np.float32(1 / rescale_factor)
        if do_normalize:
            mean, std = (np.array(x, np.float32)[:, None, None] for x in (image_mean, image_std))
            values = (values - mean) / std
        data = {"pixel_values": np.ascontiguousarray(values), "num_tiles": np.array(counts)}
        return BatchFeature(data, tensor_type=return_tensors)


def _tile_size(size: Any) -> int:
    if size["height"] != size["width"]:
        raise UserError(f"tiles are square, so size cannot be {size['height']}x{size['width']}")
    return int(size["height"])
