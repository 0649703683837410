"""Images and encodings of the page: made once, in bounded memory, each for its own visitor."""

import io
import threading

import numpy as np
import pytest
from helpers import noise
from page_helpers import noisy_png
from PIL import ExifTags, Image

from sail_encoder.backbones.base import VisionBackbone
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.io.errors import ImageError, UserError
from sail_encoder.page.encodings import MOST, Encoder, spread_layers
from sail_encoder.page.photos import SIDE, Photo, Photos


@pytest.fixture(scope="module")
def encoder():
    return Encoder(["sail-tiny", "raw/14"], 2**30)


@pytest.fixture
def encoded(monkeypatch):
    """Names of the models that were asked to encode, one for each image."""
    names, encode = [], VisionBackbone.encode

    def recorded(self, images, *arguments, **options):
        names.extend([self.name] * len(images))
        return encode(self, images, *arguments, **options)

    monkeypatch.setattr(VisionBackbone, "encode", recorded)
    return names


def test_an_image_is_encoded_once_per_model(encoder, encoded):
    photo = Photo("a.png", noisy_png(1))
    same = Photo("b.png", noisy_png(1))
    first = encoder.encode(photo, "sail-tiny")
    assert encoder.encode(same, "sail-tiny") is first
    assert encoder.encode(photo, "raw/14") is not first
    assert encoded == ["sail-tiny", "raw/14"]


def test_visitors_who_come_together_share_one_encoding(encoder, encoded):
    photo, found = Photo("a.png", noisy_png(2)), []
    threads = [threading.Thread(target=lambda: found.append(encoder.encode(photo, "sail-tiny"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoded) == 1
    assert found[0] is found[1] is found[2]


def test_features_are_those_of_the_backbone(encoder):
    photo = Photo("a.png", noisy_png(3))
    encoding = encoder.encode(photo, "sail-tiny")
    [features] = encoder.load("sail-tiny").encode([photo.read()], layers="all")
    assert list(encoding.grids) == list(features.layers) == list(range(6))
    for layer, grid in encoding.grids.items():
        np.testing.assert_allclose(grid, features.layers[layer].numpy(), rtol=1e-3, atol=1e-3)


def test_memory_of_encodings_is_bounded():
    photos = [Photo(f"{seed}.png", noisy_png(seed)) for seed in range(6)]
    room = 3 * Encoder(["sail-tiny"], 1).encode(photos[0], "sail-tiny").nbytes
    encoder = Encoder(["sail-tiny"], room)
    for photo in photos:
        encoder.encode(photo, "sail-tiny")
    assert len(encoder.encodings) == 3
    assert encoder.encodings.total <= room
    kept = [encoder.encodings.get((photo.digest, "sail-tiny")) is not None for photo in photos]
    assert kept == [False, False, False, True, True, True]


def test_no_more_encodings_than_a_few_are_kept_however_small():
    encoder = Encoder(["raw/14"], 2**30)
    for seed in range(MOST + 3):
        encoder.encode(Photo(f"{seed}.png", noisy_png(seed, 28, 28)), "raw/14")
    assert len(encoder.encodings) == MOST


def test_a_model_that_is_not_offered_is_refused(encoder):
    with pytest.raises(UserError, match=r"no model timm/resnet50; it offers sail-tiny, raw/14"):
        encoder.encode(Photo("a.png", noisy_png()), "timm/resnet50")


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (BackboneSpec("six", "f", 14, 8, 6), [0, 1, 2, 3, 4, 5]),
        (BackboneSpec("deep", "f", 14, 8, 32), [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31]),
        (BackboneSpec("one", "f", 14, 8, 1), [0]),
        (BackboneSpec("stages", "f", 16, 8, 4, stages=((8, 4), (16, 8), (16, 8), (16, 8))), [1, 2, 3]),
    ],
    ids=lambda value: value.name if isinstance(value, BackboneSpec) else "",
)
def test_layers_are_spread_evenly_and_end_with_the_last(spec, layers):
    assert spread_layers(spec) == layers


def test_an_image_is_reached_by_its_own_token_alone():
    photos = Photos({"example": Photo("example", noisy_png(0))}, 2**30)
    mine, yours = (photos.add(Photo(f"{seed}.png", noisy_png(seed))) for seed in (1, 2))
    assert mine != yours
    assert min(len(mine), len(yours)) >= 32
    assert (photos.get(mine).name, photos.get(yours).name) == ("1.png", "2.png")
    for name in ("1.png", photos.get(mine).digest, mine[:-1]):
        with pytest.raises(UserError, match="no longer held"):
            photos.get(name)


def test_memory_of_uploads_is_bounded_and_examples_stay():
    one = Photo("0.png", noisy_png(0))
    photos = Photos({"example": one}, 3 * one.nbytes)
    tokens = [photos.add(Photo(f"{seed}.png", noisy_png(seed))) for seed in range(8)]
    assert photos.nbytes <= 3 * one.nbytes
    assert photos.get("example") is one
    assert photos.get(tokens[-1]).name == "7.png"
    with pytest.raises(UserError, match="upload it again"):
        photos.get(tokens[0])


def test_a_photo_has_its_picture_and_its_name_without_folders():
    photo = Photo("C:\\pictures\\cat.png", noisy_png(0, 100, 200))
    assert photo.name == "cat.png"
    assert photo.image_size == (100, 200)
    assert photo.pixels.shape == (SIDE // 2, SIDE, 3)


def test_a_photo_is_upright_as_its_exif_orientation_says(encoder):
    exif, stored = Image.Exif(), Image.fromarray(noise(98, 196))
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    photo = Photo("turned.png", file.getvalue())
    assert photo.image_size == (196, 98)
    assert (np.asarray(photo.read()) == np.rot90(np.asarray(stored), -1)).all()
    assert encoder.encode(photo, "raw/14").geometry.grid == (14, 7)


def test_a_broken_file_is_named():
    with pytest.raises(ImageError, match=r"^cat\.png: not an image that Pillow can read"):
        Photo("cat.png", b"GIF and no more")
