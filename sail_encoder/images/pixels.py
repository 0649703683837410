"""Pixels: any image as 8-bit RGB, resized as the published code does it, cut into patches."""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from einops import rearrange
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sail_encoder.images.resizing import Resize, Size
from sail_encoder.io.errors import ImageError, UserError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = np.ndarray[Any, Any]
ImageLike: TypeAlias = Any
"""A path, a PIL image, an array [height, width, 3] or a tensor [3, height, width]."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: the size at which Pillow speaks of a decompression bomb."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
"""What Pillow may take a file for, whatever its name: no format that hands it on to another program."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PatchedImage:
    """An image as the model takes it.

    Attributes:
        patches: uint8 [rows * columns, 3 * patch_size**2], channel first within a patch, in reading order.
        grid: Rows and columns of patches.
        image_size: (height, width) of the original in pixels.
        resized_size: (height, width) of what was cut into patches.
        exif_orientation: The EXIF orientation that was found and not applied, 1 where there is none.
    """

    patches: Array
    grid: Size
    image_size: Size
    resized_size: Size
    exif_orientation: int = 1


def patch_image(
    image: ImageLike,
    resize: Resize,
    patch_size: int,
    exif_rotate: bool = False,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> PatchedImage:
    """Reads, resizes and cuts one image.

    Args:
        image: A path, the bytes of an image file, a PIL image, an array [height, width, 3] or a tensor
            [3, height, width]; arrays and tensors hold uint8, or floats from 0 to 1.
        resize: Which size to bring it to.
        patch_size: Side of a patch in pixels.
        exif_rotate: Whether to turn a photograph upright as its EXIF orientation says. The published code does not,
            and data sets are annotated in stored pixels.
        resample: Pillow's filter; SAIL was trained with bilinear, which averages over the source when it shrinks.

    Returns:
        The patches and their geometry.

    Raises:
        ImageError: If there is no image to be read.
    """
    rgb, orientation = read_image(image, exif_rotate)
    size = (rgb.height, rgb.width)
    rows, columns = grid = resize.grid(size, patch_size)
    resized_size = (rows * patch_size, columns * patch_size)
    resized = rgb.resize(resized_size[::-1], resample)
    return PatchedImage(patchify(np.asarray(resized), patch_size), grid, size, resized_size, orientation)


def image_size(open_image: Callable[[], str | bytes]) -> Size | None:
    """(height, width) in stored pixels, from the header alone; None where there is no image."""
    try:
        source = open_image()
        with _open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return opened.height, opened.width
    # What cannot be read is reported when it is its turn.
    except Exception:
        return None


def patchify(pixels: Array, patch_size: int) -> Array:
    """[rows * p, columns * p, 3] -> [rows * columns, 3 * p * p], channel first within a patch."""
    p = patch_size
    return np.ascontiguousarray(rearrange(pixels, "(r y) (k x) c -> (r k) (c y x)", y=p, x=p))


def patchify_batch(images: "Tensor", patch_size: int) -> tuple["Tensor", Size]:
    """Cuts images of one size into patches.

    Args:
        images: [batch, 3, rows * patch_size, columns * patch_size].
        patch_size: Side of a patch in pixels.

    Returns:
        The patches [batch * rows * columns, 3 * patch_size**2], channel first within a patch, and (rows, columns).

    Raises:
        UserError: If patches do not tile the images.
    """
    p, shape = patch_size, tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] % p or shape[3] % p:
        raise UserError(f"a batch of shape {shape} cannot be cut into patches; pass [n, 3, {p}*a, {p}*b]")
    return rearrange(images, "n c (r y) (k x) -> (n r k) (c y x)", y=p, x=p), (shape[2] // p, shape[3] // p)


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
    return Image.open(source, formats=_formats())


def _decode(source: str | io.BytesIO, exif_rotate: bool) -> tuple[Image.Image, int]:
    try:
        # Anything else, such as a pipe, may never give an end.
        if isinstance(source, str) and not stat.S_ISREG(os.stat(source).st_mode):
            raise ImageError("no regular file")
        with _open(source) as opened:
            return _upright_rgb(opened, exif_rotate)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except UnidentifiedImageError:
        raise ImageError("not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS} pixels, which may be a decompression bomb") from None
    # Decoders of damaged files raise whatever they stumble over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _upright_rgb(image: Image.Image, exif_rotate: bool) -> tuple[Image.Image, int]:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    # Some writers store 16 bits of a PNG in Pillow's 32-bit mode; elsewhere nobody knows how far such pixels go.
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
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
