"""Cost of features before they are there: patches per image and bytes on disk."""

from collections.abc import Sequence

from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import image_size
from sail_encoder.images.files import ImageFile
from sail_encoder.images.resizing import Resize

_SAMPLES = 200


def feature_bytes(positions: float, channels: int, layers: int, dtype: str) -> float:
    """Size of one image's features on disk."""
    return positions * channels * layers * (2 if dtype == "float16" else 4)


def look_at_some(images: Sequence[ImageFile], spec: BackboneSpec, size: Resize) -> tuple[float, int, str]:
    """Reads the headers of a sample of images.

    Returns:
        Patches per image on average, of those that can be read; how many were looked at; and a remark on those that
        cannot be read, with a semicolon before it, empty where there are none.
    """
    sample = list(images[:: max(1, len(images) // _SAMPLES)])
    sizes = [image_size(image.open) for image in sample]
    unreadable = [image.key for image, pixels in zip(sample, sizes, strict=True) if pixels is None]
    grids = [spec.grid(pixels, size) for pixels in sizes if pixels is not None]
    if size.fixed is not None:
        grids = [spec.grid(size.fixed, size)]
    patches = sum(rows * columns for rows, columns in grids) / len(grids) if grids else 0.0
    remark = ""
    if unreadable:
        remark = f"; {len(unreadable)} of {len(sample)} that were looked at cannot be read, such as {unreadable[0]}"
    return patches, len(sample), remark
