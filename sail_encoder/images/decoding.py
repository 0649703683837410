"""Decoding: any image as 8-bit RGB."""

import io
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sail_encoder.images.resizing import MAX_PIXELS, Size
from sail_encoder.io.errors import ImageError
from sail_encoder.io.files import require_regular
from sail_encoder.io.remote import is_remote

Array: TypeAlias = np.ndarray[Any, Any]
ImageLike: TypeAlias = Any
"""A path, a PIL image, an array [height, width, 3] or a tensor [3, height, width]."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
"""What Pillow may take a file for, whatever its name: no format that hands it on to another program."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def image_size(open_image: Callable[[], str | bytes]) -> Size | None:
    """(height, width) in stored pixels, from the header alone; None where there is no image."""
    try:
        source = open_image()
        with _open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return opened.height, opened.width
    # What cannot be read is reported when it is its turn.
    except Exception:
        return None


def read_image(image: ImageLike, exif_rotate: bool = False) -> tuple[Image.Image, int]:
    """Turns anything that is an image into 8-bit RGB.

    Transparency is dropped and an animation gives its first frame, as in the published code; 16-bit gray is scaled to
    8 bits, where the published code would clip it to white.

    Returns:
        The image, and its EXIF orientation as far as it was not applied.

    Raises:
        ImageError: If there is no image to be read.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            return _decode(os.fspath(image), exif_rotate)
        except ImageError as error:
            raise ImageError(error.reason, os.fspath(image)) from None
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), exif_rotate)
    if isinstance(image, Image.Image):
        return _upright_rgb(image, exif_rotate)
    if hasattr(image, "detach"):
        return Image.fromarray(_as_uint8(_channels_last(image.detach().cpu().numpy()))), 1
    if isinstance(image, np.ndarray):
        return Image.fromarray(_as_uint8(_rgb_array(image))), 1
    raise ImageError(
        f"{type(image).__name__} is not an image; pass a path, a PIL image, an array [height, width, 3] or a tensor "
        "[3, height, width]"
    )


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(source: str | io.BytesIO) -> Image.Image:
    if isinstance(source, str):
        require_regular(source)
    return Image.open(source, formats=_formats())


def _decode(source: str | io.BytesIO, exif_rotate: bool) -> tuple[Image.Image, int]:
    try:
        with _open(source) as opened:
            return _upright_rgb(opened, exif_rotate)
    except ImageError:
        raise
    except FileNotFoundError:
        is_here = isinstance(source, io.BytesIO) or not is_remote(source)
        raise ImageError("no such file" if is_here else "it is not on this machine; copy it here first") from None
    except UnidentifiedImageError:
        raise ImageError("not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS} pixels, which may be a decompression bomb") from None
    except OSError as error:
        # What the system says has a number, what a decoder says has none.
        raise ImageError(error.strerror or f"cannot be decoded ({type(error).__name__}: {error})") from None
    # Decoders of damaged files raise whatever they stumble over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _upright_rgb(image: Image.Image, exif_rotate: bool) -> tuple[Image.Image, int]:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    # Pillow holds 16 bits of PNG and PGM in its 32-bit mode; elsewhere nobody knows how far such pixels go.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ImageError("32-bit pixels have no defined white; save the image with 8 or 16 bits")
    orientation = _orientation(image)
    if exif_rotate:
        image, orientation = ImageOps.exif_transpose(image), 1
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        image = Image.fromarray((levels.clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB"), orientation


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _channels_last(pixels: Array) -> Array:
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ImageError(f"a tensor of shape {pixels.shape} is not one image; pass [3, height, width], one by one")
    return np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3))


def _rgb_array(pixels: Array) -> Array:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(f"an array of shape {pixels.shape} is not one image; pass [height, width, 3], one by one")
    return np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3))


def _as_uint8(pixels: Array) -> Array:
    if pixels.size == 0:
        raise ImageError(f"an image of {pixels.shape[0]}x{pixels.shape[1]} pixels has nothing to read")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"pixels of type {pixels.dtype} are ambiguous; pass uint8, or floats from 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ImageError(f"float pixels run from {low:.3g} to {high:.3g}; allowed is 0 to 1, before any normalisation")
    return (pixels * 255).round().astype(np.uint8)
