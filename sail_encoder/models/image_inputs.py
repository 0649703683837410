"""Images as image processors receive them, read as the backbones read them."""

import base64
import binascii
import os
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, make_flat_list_of_images

from sail_encoder.images.decoding import Array, read_image
from sail_encoder.io.errors import ImageError, UserError

_DATA = "data:image/"


class ReadingImageProcessor(PilBackend):
    """Image processor whose pixels are those of `read_image`, whatever an image is given as.

    Paths and URLs, PIL images of any mode, arrays and tensors give the same pixels as in `VisionBackbone.encode`; EXIF
    orientation is not applied. `do_convert_rgb` changes nothing, since everything is read as RGB.
    """

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images in the same nesting, each as something that transformers takes for one.

        Raises:
            ImageError: If one cannot be read.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        # An array may be a batch, and its channels may be first.
        if getattr(image_url_or_urls, "ndim", 0) >= 3:
            return image_url_or_urls
        if isinstance(image_url_or_urls, str):
            image_url_or_urls = _decode_base64(image_url_or_urls)
        return read_image(image_url_or_urls)[0]

    def preprocess(self, images: ImageInput, *args: Any, **kwargs: Any) -> BatchFeature:
        """Preprocesses images; see the class.

        Raises:
            ImageError: If one cannot be read.
            UserError: If floats are not to be rescaled: they are read as 8 bits.
        """
        flat = make_flat_list_of_images(self.fetch_images(images))
        if kwargs.get("do_rescale", self.do_rescale) is False and any(map(_is_float, flat)):
            raise UserError("images of floats are read as 8 bits, from 0 to 255; leave do_rescale at True")
        return super().preprocess(flat, *args, **kwargs)

    def process_image(
        self, image: ImageInput, *args: Any, input_data_format: str | None = None, **kwargs: Any
    ) -> Array:
        """One image as uint8 [3, height, width]."""
        if input_data_format is not None and not isinstance(image, Image.Image):
            image = _channels_last(image, input_data_format)
        return np.asarray(read_image(image)[0]).transpose(2, 0, 1)


def _channels_last(image: Any, order: str) -> Any:
    """An array or a tensor whose order of axes is known, in the only order that it can then be taken for."""
    values = image.detach().cpu() if hasattr(image, "detach") else image
    values = values.float().numpy() if getattr(values, "is_floating_point", bool)() else np.asarray(values)
    if order != "channels_first" or values.ndim != 3:
        return values
    return np.moveaxis(values, 0, -1)


def _is_float(image: Any) -> bool:
    return "float" in str(getattr(image, "dtype", ""))


def _decode_base64(text: str) -> str | bytes:
    """The image that a text holds, or the text itself, a path or URL."""
    if not text.startswith(_DATA) and (len(text) < 64 or os.path.exists(text)):
        return text
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith(_DATA) else text, validate=True)
    except (binascii.Error, ValueError):
        if text.startswith(_DATA):
            raise ImageError(f"'{text[:40]}...' is no base64 of an image") from None
        return text
