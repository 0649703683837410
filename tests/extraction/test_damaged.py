"""200 damaged or odd files: none stops the run, none gives a silent wrong grid."""

import io

import numpy as np
import pytest
from helpers import bomb, noise
from PIL import Image
from pyarrow import parquet

from sail_encoder.commands.extract import extract
from sail_encoder.images.decoding import read_image
from sail_encoder.images.resizing import native_grid


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(seed, height=40, width=60):
    return Image.fromarray(noise(height, width, seed))


def odd_files(seed):
    """Twenty files; the second entry says whether the file is an image."""
    image = picture(seed)
    jpeg = encoded(image, "JPEG")
    png = encoded(image)
    sixteen = Image.fromarray(noise(40, 60, seed)[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 1 + seed % 8
    cut = 20 + seed * 37 % (len(jpeg) // 2)
    flipped = bytearray(png)
    flipped[60 + seed] ^= 0xFF
    return {
        "truncated.jpg": (jpeg[: len(jpeg) - cut], False),
        "truncated.png": (png[: len(png) // 2], False),
        "header_only.jpg": (jpeg[:10], False),
        "flipped.png": (bytes(flipped), False),
        "zero.jpg": (b"", False),
        "nulls.png": (b"\0" * 500, False),
        "text.jpg": (b"this is a text", False),
        "html.png": (b"<html><body>404</body></html>", False),
        "bomb.png": (bomb(), False),
        "float.tiff": (encoded(Image.fromarray(noise(9, 9, seed)[..., 0].astype(np.float32)), "TIFF"), False),
        "jpeg_named.png": (jpeg, True),
        "png_named.jpg": (png, True),
        "palette.png": (encoded(image.convert("P")), True),
        "cmyk.jpg": (encoded(image.convert("CMYK"), "JPEG"), True),
        "sixteen.png": (encoded(sixteen), True),
        "alpha.png": (encoded(image.convert("RGBA")), True),
        "animated.gif": (encoded(image, "GIF", save_all=True, append_images=[picture(seed + 1)]), True),
        "turned.jpg": (encoded(image, "JPEG", exif=turned), True),
        "one_pixel.png": (encoded(picture(seed, 1, 1)), True),
        "thin.png": (encoded(picture(seed, 1, 5000)), True),
    }


@pytest.fixture(scope="module")
def extracted(small_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    files = {}
    for seed in range(10):
        for name, (content, good) in odd_files(seed).items():
            path = folder / f"{seed}" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            files[f"{seed}/{name}"] = good
    out = tmp_path_factory.mktemp("out")
    status = extract([str(folder)], str(out), model=str(small_checkpoint))
    rows = {row["path"]: row for row in parquet.read_table(out / "index.parquet").to_pylist()}
    return folder, out, files, rows, status


def test_nothing_stops_the_run(extracted):
    _, _, files, rows, status = extracted
    assert len(files) == 200
    assert rows.keys() == files.keys()
    assert status == 1


def test_every_file_is_judged_right(extracted):
    _, _, files, rows, _ = extracted
    wrong = [path for path, good in files.items() if (rows[path]["status"] == "done") != good]
    assert not wrong


def test_grids_are_those_of_the_stored_pixels(extracted):
    folder, out, files, rows, _ = extracted
    for path, good in files.items():
        if good:
            with Image.open(folder / path) as image:
                size = (image.height, image.width)
            row = rows[path]
            assert (row["image_height"], row["image_width"]) == size
            grid = np.load(out / row["file"])
            assert grid.shape[:2] == native_grid(size, 14, 4096)
            assert np.isfinite(grid).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpha.png", lambda image, folder: image),
        ("sixteen.png", lambda image, folder: image.getchannel(0).convert("RGB")),
        ("palette.png", lambda image, folder: image.convert("P").convert("RGB")),
        ("animated.gif", lambda image, folder: Image.open(folder / "animated.gif").convert("RGB")),
        ("turned.jpg", lambda image, folder: Image.open(folder / "jpeg_named.png")),
    ],
)
def test_same_picture_same_pixels(extracted, name, expected):
    """An animation stands for its first picture, and EXIF's rotation is not applied."""
    folder = extracted[0] / "3"
    pixels = np.asarray(read_image(folder / name)[0])
    assert (pixels == np.asarray(expected(picture(3), folder))).all()


def test_inks_are_turned_into_colors(extracted):
    """A JPEG in CMYK keeps its noise only roughly, but inverted inks would turn the sign."""
    pixels = np.asarray(read_image(extracted[0] / "3" / "cmyk.jpg")[0])
    for channel in range(3):
        assert np.corrcoef(pixels[..., channel].ravel(), noise(40, 60, 3)[..., channel].ravel())[0, 1] > 0.3


def test_failures_say_why(extracted):
    _, out, files, _, _ = extracted
    lines = (out / "failures.csv").read_text().splitlines()[1:]
    assert len(lines) == sum(not good for good in files.values())
    reasons = dict(line.split(",", 1) for line in lines)
    assert "bomb" in reasons["0/bomb.png"]
    assert "truncated" in reasons["0/truncated.jpg"]
    assert "not an image" in reasons["0/text.jpg"]
    assert not any("Traceback" in reason for reason in reasons.values())
