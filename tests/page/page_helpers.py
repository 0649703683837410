"""What tests of the page share: images as files."""

import io

from helpers import noise
from PIL import Image


def png(pixels):
    """A file of an image uint8 [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noisy_png(seed=0, height=140, width=196):
    """A file of random pixels."""
    return png(noise(height, width, seed))
