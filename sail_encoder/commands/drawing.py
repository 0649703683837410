"""Base of the commands that draw: photographs and their features, each image encoded once per model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from sail_encoder.backbones.registry import announce, load_for
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.decoding import Array, read_image
from sail_encoder.images.geometry import Geometry
from sail_encoder.images.sources import list_images
from sail_encoder.io.errors import UserError
from sail_encoder.io.remote import is_remote
from sail_encoder.pictures.canvas import NUMBERS, check_output
from sail_encoder.pictures.overlays import photograph

DPI = 200


@dataclass(frozen=True)
class Photo:
    """An image to be drawn.

    Attributes:
        name: What stands above it.
        image: 8-bit RGB.
    """

    name: str
    image: Image.Image

    def pixels(self, side: int) -> Array:
        """uint8 [height, width, 3] with the longer side at `side` pixels."""
        return photograph(self.image, side)


@dataclass(frozen=True)
class Seen:
    """One image as a model sees it.

    Attributes:
        geometry: Where its patches lie.
        grids: For each layer its grid, float32 [nh, nw, C].
    """

    geometry: Geometry
    grids: dict[int, Array]


def check_drawing(out: Path, dpi: int) -> None:
    """Makes sure that the file can be written.

    Raises:
        UserError: If it cannot.
    """
    check_output(out)
    if not 20 <= dpi <= 1200:
        raise UserError(f"--dpi cannot be {dpi}; allowed is 20 to 1200")


def is_numbers(out: Path) -> bool:
    """Tells whether the numbers are wanted, not a picture of them."""
    return out.suffix.lower() in NUMBERS


def panel_side(points: float, dpi: int) -> int:
    """Longer side of a panel in pixels."""
    return round(points * dpi / 72)


def read_photo(path: str, exif_rotate: bool) -> Photo:
    """Reads an image file.

    Raises:
        ImageError: If it cannot be read.
    """
    return Photo(Path(path).name, read_image(path, exif_rotate)[0])


def read_photos(sources: Sequence[str], exif_rotate: bool, limit: int) -> tuple[list[Photo], int]:
    """Reads images: files as they are named, also twice, and what folders, globs, lists and shards hold.

    Returns:
        The first `limit`, and how many there are.

    Raises:
        UserError: If one cannot be listed or read.
    """
    photos: list[Photo] = []
    count = 0
    # What is named twice is one image, which is encoded once.
    read = cache(lambda path: read_photo(path, exif_rotate))
    for source in sources:
        path = Path(source)
        # A file is read under its own name, whatever it is called; what cannot be read says so.
        is_list = path.is_dir() or path.suffix.lower() in (".txt", ".csv", ".tsv", ".parquet", ".tar")
        is_list = is_list or is_remote(source)
        if is_list or (not path.exists() and set("*?[") & set(source)):
            listed = list_images([source]).images
            count += len(listed)
            photos += [Photo(one.key, read_image(one.open(), exif_rotate)[0]) for one in listed[: limit - len(photos)]]
        else:
            count += 1
            photos += [read(source)] if len(photos) < limit else []
    return photos, count


def see(photos: Sequence[Photo], asked: FeatureSpec) -> list[Seen]:
    """Encodes images, with the model loaded up to the deepest layer that is asked for."""
    announce(asked.model)
    backbone = load_for(asked)
    different = {id(photo.image): photo.image for photo in photos}
    encoded = backbone.encode(list(different.values()), layers=asked.layers, resize=asked.size)
    seen = {
        key: Seen(one.geometry, {layer: grid.float().cpu().numpy() for layer, grid in one.layers.items()})
        for key, one in zip(different, encoded, strict=True)
    }
    return [seen[id(photo.image)] for photo in photos]
