"""Decoding: any image as 8-bit RGB."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sail_encoder.images.resizing import MAX_PIXELS, Size
from sail_encoder.io.errors import ImageError, UserError
from sail_encoder.io.files import require_regular
from sail_encoder.io.remote import is_remote, read_remote

Array: TypeAlias = np.ndarray[Any, Any]
ImageLike: TypeAlias = Any
"""A path or URL, a PIL image, an array [height, width, 3], a tensor [3, height, width], bytes or an open file."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "HEIF")
"""What Pillow may take a file for, whatever its name: no format that hands it on to another program."""

INSTALL_HEIC = "pip install pillow-heif"

_CHANNELS = (1, 3, 4)
"""Gray, RGB, and RGB with transparency."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
"""Bytes 8 to 12 of a HEIC file, after `ftyp` (ISO/IEC 23008-12)."""

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
    """Turns anything that is an image into 8-bit RGB; every entrance reads images with this function.

    Transparency is dropped and an animation gives its first frame, as in the published code; 16-bit gray is scaled to
    8 bits, where the published code would clip it to white. Floats run from 0 to 1. Arrays have their channels last and
    tensors first, unless only the other order is possible. An open file is read from its start where it can be, and
    left open where it was.

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
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), exif_rotate)
    if isinstance(image, Image.Image):
        with _explain_decoder():
            return _upright_rgb(image, exif_rotate)
    if hasattr(image, "detach") and hasattr(image, "cpu"):
        return Image.fromarray(_as_uint8(_rgb_array(_tensor_to_numpy(image), channels_first=True))), 1
    if isinstance(image, np.ndarray):
        return Image.fromarray(_as_uint8(_rgb_array(image, channels_first=False))), 1
    if hasattr(image, "read"):
        return _decode(io.BytesIO(_read_open_file(image)), exif_rotate)
    raise ImageError(
        f"{type(image).__name__} is not an image; pass a path, a PIL image, an array [height, width, 3] or a tensor "
        "[3, height, width]"
    )


def _read_open_file(file: Any) -> bytes:
    """All of a file that a caller has opened, which is then left as it was."""
    if isinstance(file, io.TextIOBase):
        raise ImageError("a file that was opened as text holds no image; open it with mode 'rb'")
    try:
        position = file.tell() if file.seekable() else None
        if position is not None:
            file.seek(0)
        content = file.read()
        if position is not None:
            file.seek(position)
    except (AttributeError, OSError, ValueError) as error:
        raise ImageError(f"an open file cannot be read ({error}); pass its path") from None
    if not isinstance(content, bytes):
        raise ImageError(f"a file gives {type(content).__name__} and no bytes; open it with mode 'rb'")
    return content


def _tensor_to_numpy(tensor: Any) -> Array:
    # NumPy knows no bfloat16, and float16 is too coarse to be multiplied by 255.
    values = tensor.detach().cpu()
    return (values.float() if values.dtype.is_floating_point else values).numpy()


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(source: str | io.BytesIO) -> Image.Image:
    if isinstance(source, str) and is_remote(source):
        source = io.BytesIO(read_remote(source))
    elif isinstance(source, str):
        require_regular(source)
    return Image.open(source, formats=_formats())


def _decode(source: str | io.BytesIO, exif_rotate: bool) -> tuple[Image.Image, int]:
    with _explain_decoder():
        try:
            with _open(source) as opened:
                return _upright_rgb(opened, exif_rotate)
        except UnidentifiedImageError:
            if "HEIF" not in _formats() and _is_heif(source):
                raise ImageError(f"HEIC is not read without pillow-heif: {INSTALL_HEIC}") from None
            raise


@contextmanager
def _explain_decoder() -> Iterator[None]:
    """Turns whatever Pillow raises of an image into an `ImageError`."""
    try:
        yield
    except UserError as error:
        raise error if isinstance(error, ImageError) else ImageError(str(error)) from None
    except FileNotFoundError:
        raise ImageError("no such file") from None
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


def _is_heif(source: str | io.BytesIO) -> bool:
    if isinstance(source, str):
        with open(source, "rb") as file:
            start = file.read(12)
    else:
        start = source.getvalue()[:12]
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _upright_rgb(image: Image.Image, exif_rotate: bool) -> tuple[Image.Image, int]:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    # Pillow holds 16 bits of PNG and PGM in its 32-bit mode; elsewhere nobody knows how far such pixels go.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ImageError("32-bit pixels have no defined white; save the image with 8 or 16 bits")
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    orientation = found if isinstance(found, int) and 1 <= found <= 8 else 1
    if exif_rotate:
        image, orientation = ImageOps.exif_transpose(image), 1
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        image = Image.fromarray((levels.clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB"), orientation


def _rgb_array(pixels: Array, channels_first: bool) -> Array:
    """[height, width, 3] of an array in either order, `channels_first` where both are possible."""
    if pixels.ndim == 2:
        pixels, channels_first = pixels[..., None], False
    orders = (0, 2) if channels_first else (2, 0)
    axis = next((axis for axis in orders if pixels.ndim == 3 and pixels.shape[axis] in _CHANNELS), None)
    if axis is None:
        usual = "[3, height, width]" if channels_first else "[height, width, 3]"
        raise ImageError(
            f"{list(pixels.shape)} is not the shape of one image; pass {usual}, one by one, with 1, 3 or 4 channels"
        )
    pixels = np.moveaxis(pixels, axis, 2)
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
