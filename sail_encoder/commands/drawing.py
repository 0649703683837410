"""Base of the commands that draw: photographs and their features, each image encoded once per model."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from sail_encoder.backbones.registry import announce, load_for
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.decoding import read_image
from sail_encoder.images.sources import list_images
from sail_encoder.io.errors import UserError
from sail_encoder.io.remote import is_remote
from sail_encoder.pictures.canvas import NUMBERS, check_output
from sail_encoder.pictures.component_sheets import LayerGrids
from sail_encoder.pictures.overlays import Photo


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


def read_photo(path: str, exif_rotate: bool) -> Photo:
    """Reads an image file.

    Raises:
        ImageError: If it cannot be read.
    """
    return Path(path).name, read_image(path, exif_rotate)[0]


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
            photos += [(one.key, read_image(one.open(), exif_rotate)[0]) for one in listed[: limit - len(photos)]]
        else:
            count += 1
            photos += [read(source)] if len(photos) < limit else []
    return photos, count


def see(photos: Sequence[Photo], asked: FeatureSpec) -> LayerGrids:
    """Encodes images, each once, with the model loaded up to the deepest layer that is asked for."""
    announce(asked.model)
    backbone = load_for(asked)
    different = {id(image): image for _, image in photos}
    encoded = backbone.encode(list(different.values()), layers=asked.layers, resize=asked.size)
    seen = dict(zip(different, encoded, strict=True))
    grids = {
        key: {layer: grid.float().cpu().numpy() for layer, grid in one.layers.items()} for key, one in seen.items()
    }
    return {layer: [grids[id(image)][layer] for _, image in photos] for layer in asked.layers}
