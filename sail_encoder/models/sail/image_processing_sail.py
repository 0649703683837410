"""Turns images into normalised patches, as a transformers image processor."""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs
from typing_extensions import Unpack

from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD, Array
from sail_encoder.images.patches import patchify
from sail_encoder.images.resizing import MAX_TOKENS, Resize, Size
from sail_encoder.models.image_inputs import ReadingImageProcessor


class SailImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Options of `SailImageProcessor` beyond those of every image processor."""

    patch_size: int
    max_tokens: int


class SailImageProcessor(ReadingImageProcessor):
    """Resizes images so that patches tile them, normalises, and cuts them into patches.

    The size of an image decides its grid (the native rule of `sail_encoder.images.resizing`); with `size` all images
    are squashed to one height and width. Gives `pixel_values` [total patches, 3 * patch_size**2] and `image_grid_hw`
    [images, 2].

    Args:
        patch_size: Side of a patch in pixels.
        max_tokens: Patches of an image at most, under the native rule.
        kwargs: Every option of transformers' image processors.
    """

    valid_kwargs = SailImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_hw"]

    do_resize = True
    resample = Image.Resampling.BILINEAR
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_mean = IMAGENET_MEAN
    image_std = IMAGENET_STD
    patch_size = 14
    max_tokens = MAX_TOKENS

    def __init__(self, **kwargs: Unpack[SailImageProcessorKwargs]) -> None:  # type: ignore[misc]
        super().__init__(**kwargs)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Patches of an image of this size in pixels; `images_kwargs` override the processor's own options."""
        rows, columns = self._grid((height, width), **{**self._grid_options(), **(images_kwargs or {})})
        return rows * columns

    def _grid_options(self) -> dict[str, Any]:
        return {"size": self.size, "patch_size": self.patch_size, "max_tokens": self.max_tokens}

    @staticmethod
    def _grid(image_size: Size, size: SizeDict | None, patch_size: int, max_tokens: int, **_: Any) -> Size:
        fixed = (size["height"], size["width"]) if size else None
        return Resize(fixed, max_tokens).grid(image_size, patch_size)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        # The common check wants a size wherever images are resized; without one the native rule finds it.
        super()._validate_preprocess_kwargs(**{**kwargs, "do_resize": kwargs["do_resize"] and bool(kwargs["size"])})

    def _preprocess(
        self,
        images: list[Array],
        do_resize: bool,
        size: SizeDict | None,
        resample: Image.Resampling | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        patch_size: int,
        max_tokens: int,
        return_tensors: str | None,
        **options: Any,
    ) -> BatchFeature:
        patches, grids = [], []
        for image in images:
            if do_resize:
                rows, columns = self._grid(image.shape[1:], size, patch_size, max_tokens, **options)
                image = self.resize(image, SizeDict(height=rows * patch_size, width=columns * patch_size), resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            grids.append((image.shape[1] // patch_size, image.shape[2] // patch_size))
            patches.append(patchify(image.transpose(1, 2, 0), patch_size))
        data = {"pixel_values": np.concatenate(patches), "image_grid_hw": np.array(grids)}
        return BatchFeature(data, tensor_type=return_tensors)
