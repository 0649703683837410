"""Markup of the page: pictures with their text alternatives inside of it, so that no picture has an address."""

import base64
import html
import io
from functools import cache
from pathlib import Path

from PIL import Image

from sail_encoder.images.decoding import Array
from sail_encoder.images.geometry import Box
from sail_encoder.page.encodings import Encoding
from sail_encoder.page.photos import Photo
from sail_encoder.page.views import View

UPLOAD_PATH = "/photos"
"""Where the page sends files to."""

_STATIC = Path(__file__).parent / "static"


@cache
def static(name: str) -> str:
    """Text of a file that belongs to the page."""
    return (_STATIC / name).read_text(encoding="utf-8")


def photo_markup(photo: Photo, encoding: Encoding, patch: tuple[int, int]) -> str:
    """A photograph with one patch outlined."""
    rows, columns = encoding.geometry.grid
    words = f"{photo.name}, {rows} rows and {columns} columns of patches; row {patch[0]}, column {patch[1]} is chosen"
    mark = _mark(encoding.geometry.patch_box(*patch), encoding.geometry.image_size)
    return f'<div class="photo">{_img(photo.pixels, words, "JPEG")}{mark}</div>'


def view_markup(view: View) -> str:
    """A picture with what it shows below it."""
    pixels, words = view
    picture = _img(pixels, words, "PNG")
    return f'<figure class="picture">{picture}<figcaption class="words">{html.escape(words)}</figcaption></figure>'


def message_markup(message: str) -> str:
    """A line that says what went wrong, empty for nothing."""
    return f'<p class="refusal" role="alert">{html.escape(message)}</p>' if message else ""


def upload_markup(label: str, limit: int, refusal: str) -> str:
    """A button to choose a file of at most `limit` bytes; `refusal` is said of larger ones."""
    return (
        f'<label class="upload">Upload<input type="file" accept="image/*" aria-label="{html.escape(label)}" '
        f'data-path="{UPLOAD_PATH}" data-limit="{limit}" data-refusal="{html.escape(refusal)}"></label>'
    )


def _img(pixels: Array, words: str, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=90, compress_level=1)
    content = base64.b64encode(file.getvalue()).decode()
    height, width = pixels.shape[:2]
    return (
        f'<img src="data:image/{kind.lower()};base64,{content}" width="{width}" height="{height}" '
        f'alt="{html.escape(words)}">'
    )


def _mark(box: Box, image_size: tuple[int, int]) -> str:
    height, width = image_size
    left, top, right, bottom = box
    places = {
        "left": left / width,
        "top": top / height,
        "width": (right - left) / width,
        "height": (bottom - top) / height,
    }
    style = ";".join(f"{name}:{100 * share:.4f}%" for name, share in places.items())
    return f'<span class="mark" style="{style}"></span>'
