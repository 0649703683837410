import numpy as np
import pytest
import torch
from helpers import bomb, noise, unpatchify
from PIL import ExifTags, Image

from sail_encoder import load_backbone
from sail_encoder.images.decoding import image_size, read_image
from sail_encoder.images.patches import patchify, patchify_batch
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import ImageError, UserError

PREPARE = load_backbone("raw/14").prepare


def position_image(rows, columns, p):
    """Red says the row of a patch, green its column, blue is 7."""
    image = np.full((rows * p, columns * p, 3), 7, np.uint8)
    image[..., 0] = np.repeat(np.arange(rows), p)[:, None]
    image[..., 1] = np.repeat(np.arange(columns), p)[None]
    return image


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (8, 3), (1, 5), (37, 91)])
def test_patches_are_in_reading_order_and_channel_first(rows, columns):
    patched = PREPARE(position_image(rows, columns, 14), Resize())
    assert patched.geometry.grid == (rows, columns)
    channels = patched.views.reshape(rows, columns, 3, 14 * 14)
    assert (channels[:, :, 0] == np.arange(rows)[:, None, None]).all()
    assert (channels[:, :, 1] == np.arange(columns)[None, :, None]).all()
    assert (channels[:, :, 2] == 7).all()


def test_unpatchify_is_the_inverse():
    image = noise(28, 42)
    assert (unpatchify(patchify(image, 14), (2, 3), 14) == image).all()


def test_a_batch_is_cut_as_its_images_are():
    images = np.stack([noise(28, 42, seed) for seed in (1, 2)])
    patches, grid = patchify_batch(torch.from_numpy(images).permute(0, 3, 1, 2), 14)
    assert grid == (2, 3)
    assert (patches.numpy() == np.concatenate([patchify(image, 14) for image in images])).all()


@pytest.mark.parametrize("shape", [(1, 3, 28, 30), (1, 1, 28, 28), (3, 28, 28)])
def test_a_batch_that_patches_do_not_tile_is_refused(shape):
    with pytest.raises(UserError, match=r"cannot be cut into patches; pass \[n, 3, 14\*a, 14\*b\]"):
        patchify_batch(torch.zeros(shape), 14)


def test_every_kind_of_input_gives_the_same_patches(tmp_path):
    pixels = noise(50, 70)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [str(path), path, path.read_bytes(), Image.fromarray(pixels), pixels, tensor, tensor / 255, pixels / 255.0]
    first, *others = (PREPARE(kind, Resize()) for kind in kinds)
    assert first.geometry.image_size == (50, 70)
    for other in others:
        assert (other.views == first.views).all()


def test_gray_becomes_rgb():
    gray = noise(28, 28)[..., 0]
    for kind in (gray, gray[..., None], torch.from_numpy(gray)[None], Image.fromarray(gray)):
        rgb = np.asarray(read_image(kind)[0])
        assert (rgb == gray[..., None]).all()


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.linspace(0, 65535, 28 * 28).astype(np.uint16).reshape(28, 28)
    scaled = np.asarray(read_image(Image.fromarray(levels))[0])[..., 0]
    assert np.abs(scaled.astype(int) - levels // 257).max() == 0
    assert len(np.unique(scaled)) == 256


def test_transparency_is_dropped_and_animations_give_their_first_frame(tmp_path):
    pixels = noise(20, 20)
    clear = Image.fromarray(np.dstack((pixels, np.zeros((20, 20), np.uint8))))
    assert (np.asarray(read_image(clear)[0]) == pixels).all()
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(tmp_path / "a.png")[0])[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation_is_reported_and_applied_on_demand(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(30, 50)).save(tmp_path / "turned.jpg", exif=exif)
    stored = PREPARE(tmp_path / "turned.jpg", Resize())
    upright = PREPARE(tmp_path / "turned.jpg", Resize(), exif_rotate=True)
    assert (stored.geometry.image_size, stored.geometry.exif_orientation) == ((30, 50), 6)
    assert (upright.geometry.image_size, upright.geometry.exif_orientation) == ((50, 30), 1)
    assert upright.geometry.grid == stored.geometry.grid[::-1]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "one by one"),
        (torch.zeros(8, 8, 2), "one by one"),
        (np.zeros((2, 8, 8), np.uint8), "one by one"),
        (np.zeros((0, 8, 3), np.uint8), "nothing to read"),
        (np.zeros((8, 8, 3), np.int64), "ambiguous"),
        (np.full((8, 8, 3), 1.5), "0 to 1"),
        (np.full((8, 8, 3), np.nan), "0 to 1"),
        (torch.randn(3, 8, 8), "before any normalisation"),
        (Image.fromarray(np.zeros((8, 8), np.float32)), "32-bit pixels"),
        (Image.fromarray(np.full((8, 8), 200, np.int32)), "32-bit pixels"),
        ("no/such/file.png", "no such file"),
        (b"not an image", "not an image"),
        (42, "int is not an image"),
    ],
)
def test_what_is_no_image_is_told(image, message):
    with pytest.raises(ImageError, match=message):
        read_image(image)


@pytest.mark.parametrize(("tag", "expected"), [(6, 6), (0, 1), (256, 1), (65535, 1), ("upright", 1), (b"6", 1)])
def test_odd_orientations_count_as_none(tag, expected):
    image = Image.new("RGB", (8, 4))
    image.getexif()[ExifTags.Base.Orientation] = tag
    assert read_image(image)[1] == expected


def test_files_that_need_another_program_are_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    with pytest.raises(ImageError, match="not an image that Pillow can read"):
        read_image(tmp_path / "page.png")


def test_bombs_are_not_decoded():
    with pytest.raises(ImageError, match="pixels"):
        read_image(bomb())


def test_size_from_the_header(tmp_path):
    Image.fromarray(noise(30, 50)).save(tmp_path / "a.jpg")
    assert image_size(lambda: str(tmp_path / "a.jpg")) == (30, 50)
    assert image_size((tmp_path / "a.jpg").read_bytes) == (30, 50)
    assert image_size(lambda: str(tmp_path / "b.jpg")) is None
