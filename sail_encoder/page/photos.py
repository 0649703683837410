"""Images of visitors, in memory alone and under names that cannot be guessed."""

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
from PIL import Image

from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.resizing import Size
from sail_encoder.io.errors import ImageError, UserError
from sail_encoder.page.memory import BoundedCache
from sail_encoder.pictures.overlays import photograph

SIDE = 560
"""Longer side of a photograph on the page in pixels."""

_LONGEST_NAME = 60


class Photo:
    """One image, as its file and as it is shown.

    Args:
        name: Name of the file.
        content: The file.

    Attributes:
        digest: SHA-256 of the file.
        image_size: (height, width) in pixels, upright.
        pixels: uint8 [height, width, 3] of its picture on the page.

    Raises:
        ImageError: If it is no image that can be read.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self.name = PurePath(name.replace("\\", "/")).name[:_LONGEST_NAME] or "image"
        self.content = content
        try:
            image = self.read()
        except ImageError as error:
            raise ImageError(error.reason, self.name) from None
        self.digest = hashlib.sha256(content).hexdigest()
        self.image_size: Size = (image.height, image.width)
        self.pixels: Array = np.array(photograph(image, SIDE))

    def read(self) -> Image.Image:
        """The image, 8-bit RGB and upright, as people expect photographs on a page."""
        return read_image(self.content, exif_rotate=True)[0]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return len(self.content) + self.pixels.nbytes


class Photos:
    """Images that visitors have chosen or uploaded.

    An uploaded image is reached by its token alone, which only the visitor's own session knows.

    Args:
        examples: Images for everybody, by name; they stay.
        limit: Bytes of the uploaded ones at most; those used longest ago go first.
    """

    def __init__(self, examples: Mapping[str, Photo], limit: int) -> None:
        self.examples = dict(examples)
        self._uploaded: BoundedCache[str, Photo] = BoundedCache(limit, lambda photo: photo.nbytes)

    def add(self, photo: Photo) -> str:
        """Keeps an image and returns its token."""
        token = secrets.token_urlsafe(24)
        self._uploaded.put(token, photo)
        return token

    def get(self, token: str) -> Photo:
        """The image of a token, or the example of a name.

        Raises:
            UserError: If it is not held, or no more.
        """
        photo = self.examples.get(token) or self._uploaded.get(token)
        if photo is None:
            raise UserError("this image is no longer held here; upload it again, or choose an example")
        return photo

    def drop(self, token: str) -> None:
        """Lets go of an uploaded image; examples stay."""
        self._uploaded.drop(token)

    @property
    def nbytes(self) -> int:
        """Memory that uploaded images take."""
        return self._uploaded.total
