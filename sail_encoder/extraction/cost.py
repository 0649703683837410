"""Cost of features before they are there: patches per image and bytes on disk."""

from collections.abc import Sequence

from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.images.decoding import image_size
from sail_encoder.images.resizing import Resize
from sail_encoder.images.sources import ImageFile

_SAMPLES = 200


def feature_bytes(positions: float, channels: int, layers: int, dtype: str) -> float:
    """Size of one image's features on disk."""
    return positions * channels * layers * (2 if dtype == "float16" else 4)


def mean_patches(images: Sequence[ImageFile], spec: BackboneSpec, size: Resize) -> float:
    """Patches of an image on average, from the headers of a sample; unreadable images are left out."""
    if size.fixed is not None:
        rows, columns = spec.grid(size.fixed, size)
        return rows * columns
    sample = images[:: max(1, len(images) // _SAMPLES)]
    sizes = [pixels for image in sample if (pixels := image_size(image.open)) is not None]
    grids = [spec.grid(pixels, size) for pixels in sizes]
    return sum(rows * columns for rows, columns in grids) / len(grids) if grids else 0.0
