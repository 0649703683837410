"""Inputs that have failed before: one image in all the forms in which images come, through every entrance."""

import base64
import io
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from case_helpers import extract, sail, says_one_line, statuses
from helpers import GOLDEN as SAIL
from helpers import noise
from PIL import Image
from pixel_sail_golden import CHECKPOINT as PIXEL_SAIL

from sail_encoder import Sampling, load_backbone, load_chat

GOLDEN = SAIL.parent
PIXELS = noise(30, 43, 7)
"""Of no side that patches tile, so that what differs before resizing differs after it."""


def png(pixels=PIXELS, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_transparency():
    return np.concatenate([PIXELS, noise(30, 43, 8)[..., :1]], axis=2)


def channels_first(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


SAME = {
    "array": lambda: PIXELS,
    "array of floats": lambda: PIXELS / 255,
    "array of float32": lambda: (PIXELS / 255).astype(np.float32),
    "array of float16": lambda: (PIXELS / 255).astype(np.float16),
    "array with transparency": with_transparency,
    "array, channels first": lambda: PIXELS.transpose(2, 0, 1),
    "array with transparency, channels first": lambda: with_transparency().transpose(2, 0, 1),
    "picture with transparency": lambda: Image.fromarray(with_transparency()),
    "tensor": lambda: channels_first(PIXELS),
    "tensor of floats": lambda: channels_first(PIXELS / 255),
    "tensor with transparency": lambda: channels_first(with_transparency()),
    "tensor, channels last": lambda: torch.from_numpy(PIXELS),
    "tensor that wants gradients": lambda: channels_first(PIXELS / 255).requires_grad_(),
    "bytes": png,
    "open file": lambda: io.BytesIO(png()),
}
"""Forms of one image, B1 and E8."""

SAME_GRAY = {
    "array": lambda: PIXELS[..., 0],
    "array with an axis": lambda: PIXELS[..., :1],
    "array, channels first": lambda: PIXELS[None, ..., 0],
    "tensor": lambda: torch.from_numpy(PIXELS[..., 0].copy()),
    "picture": lambda: Image.fromarray(PIXELS[..., 0]),
    "picture of 16 bits": lambda: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257),
    "array of three": lambda: np.stack([PIXELS[..., 0]] * 3, axis=2),
}

REFUSED = {
    "array of floats to 255": lambda: PIXELS.astype(np.float32),
    "array of 16 bits": lambda: PIXELS.astype(np.uint16) * 257,
    "array of int64": lambda: PIXELS.astype(np.int64),
    "array of floats below 0": lambda: PIXELS / 255 - 0.5,
    "array of floats that are none": lambda: np.full((30, 43, 3), np.nan),
    "array of two channels": lambda: PIXELS[..., :2],
    "tensor of floats to 255": lambda: channels_first(PIXELS).float(),
    "open text": lambda: io.StringIO("a picture"),
    "bytes of nothing": lambda: b"no picture",
    "picture that ends early": lambda: Image.open(io.BytesIO(png()[:-200])),
}


@cache
def chat():
    return load_chat("sail-tiny", device="cpu", dtype="float32")


@cache
def sail_vl():
    from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor

    return SailVLProcessor.from_pretrained(GOLDEN / "sail_vl2" / "checkpoint")


@cache
def pixel_sail():
    from sail_encoder import PixelSailProcessor

    return PixelSailProcessor.from_pretrained(PIXEL_SAIL)


@cache
def backbone(name):
    return load_backbone(name, device="cpu", dtype="float32")


def seen_by(processor, *text):
    return np.asarray(processor(*text)["pixel_values"])


def shown_to_chat(image):
    asked = []
    hook = chat().model.model.vis_embed.register_forward_hook(lambda _module, inputs, _output: asked.append(inputs[0]))
    try:
        chat().fork().ask("What is it?", image, Sampling(max_new_tokens=1))
    finally:
        hook.remove()
    return asked[0].float().numpy()


ENTRANCES = {
    "encode": lambda image: backbone("raw/14").encode([image])[0].grid.numpy(),
    "encode of SAIL": lambda image: backbone("sail-tiny").encode([image])[0].grid.numpy(),
    "encode of SAIL-VL": lambda image: (
        backbone(str(GOLDEN / "sail_vl2" / "checkpoint")).encode([image])[0].grid.numpy()
    ),
    "encode of timm": lambda image: backbone_of_timm().encode([image])[0].grid.numpy(),
    "image processor": lambda image: seen_by(chat().processor.image_processor, image),
    "processor": lambda image: seen_by(chat().processor, [image], "<vision><vpatch></vision>"),
    "image processor of SAIL-VL": lambda image: seen_by(sail_vl().image_processor, [image]),
    "processor of SAIL-VL": lambda image: seen_by(sail_vl(), [image], "<image>"),
    "processor of Pixel-SAIL": lambda image: seen_by(pixel_sail(), [image], "<vision><vpatch></vision>"),
    "chat": shown_to_chat,
}
"""What each entrance sees of an image: its pixels, or its features."""


@cache
def backbone_of_timm():
    return load_backbone("timm/vit_tiny_patch16_224", device="cpu", pretrained=False)


@pytest.mark.parametrize("name", ENTRANCES)
@pytest.mark.parametrize("form", SAME)
def test_b1_an_image_is_the_same_in_every_form(name, form):
    see = ENTRANCES[name]
    expected = see(Image.fromarray(PIXELS))
    assert expected.std() > 0
    np.testing.assert_array_equal(see(SAME[form]()), expected)


@pytest.mark.parametrize("name", ENTRANCES)
@pytest.mark.parametrize("form", SAME_GRAY)
def test_b1_gray_is_the_same_in_every_form(name, form):
    np.testing.assert_array_equal(ENTRANCES[name](SAME_GRAY[form]()), ENTRANCES[name](SAME_GRAY["array of three"]()))


@pytest.mark.parametrize("name", ENTRANCES)
@pytest.mark.parametrize("form", REFUSED)
def test_b1_what_no_entrance_can_read(name, form):
    with pytest.raises(ValueError) as refused:
        ENTRANCES[name](REFUSED[form]())
    assert type(refused.value).__name__ == "ImageError"
    assert len(str(refused.value).splitlines()) == 1


def test_b1_files_are_read_as_by_encode(tmp_path):
    """Paths and base64 through a processor: 16 bits are not clipped, and EXIF orientation is left to its option."""
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "turned.png").write_bytes(png(exif=exif))
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    text = base64.b64encode((tmp_path / "turned.png").read_bytes()).decode()
    for name in ("image processor", "image processor of SAIL-VL"):
        see = ENTRANCES[name]
        for form in (str(tmp_path / "turned.png"), text, f"data:image/png;base64,{text}"):
            np.testing.assert_array_equal(see(form), see(PIXELS))
        np.testing.assert_array_equal(see(str(tmp_path / "deep.png")), see(PIXELS[..., 0]))


def test_b1_floats_that_are_not_to_be_rescaled():
    processor = chat().processor.image_processor
    with pytest.raises(ValueError, match="leave do_rescale at True"):
        processor(PIXELS / 255, do_rescale=False)
    assert processor(PIXELS, do_rescale=False, do_normalize=False)["pixel_values"].max() > 100


def test_b1_an_order_of_axes_that_is_named():
    """Three rows, or three channels: only the caller knows."""
    processor = chat().processor.image_processor
    pixels = noise(3, 28, 1)[:, :3]
    last = processor(pixels, input_data_format="channels_last")["pixel_values"]
    first = processor(pixels.transpose(2, 0, 1), input_data_format="channels_first")["pixel_values"]
    np.testing.assert_array_equal(last, first)


def test_e8_bfloat16():
    halves = channels_first(PIXELS / 255).bfloat16()
    for see in ENTRANCES.values():
        np.testing.assert_array_equal(see(halves), see(halves.float()))


@pytest.mark.parametrize("place", [0, 5])
def test_e8_an_open_file_is_left_as_it_was(tmp_path, place):
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as file:
        file.seek(place)
        for see in ENTRANCES.values():
            np.testing.assert_array_equal(see(file), see(PIXELS))
            assert not file.closed
            assert file.tell() == place


@pytest.mark.parametrize("single", [io.BytesIO(png()), 3, None, PIXELS, "a.png"])
def test_e8_one_image_without_a_list(single):
    with pytest.raises(ValueError, match="takes a list of images"):
        load_backbone("raw/14").encode(single)


HEIC_HEADER = b"\0\0\0\x18ftypheic" + bytes(60)
"""How a photograph of a telephone begins."""


def test_b7_heic_is_read_where_its_package_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    smooth = Image.fromarray(noise(4, 4)).resize((43, 30), Image.Resampling.BICUBIC)
    heif.from_pillow(smooth).save(tmp_path / "a.heic", quality=-1)
    smooth.save(tmp_path / "a.png")
    assert extract(tmp_path, tmp_path / "out").returncode == 0
    assert statuses(tmp_path / "out") == {"a.heic": "done", "a.png": "done"}
    heic, same = (np.load(tmp_path / "out" / "features" / f"a.{kind}.npy").astype(float) for kind in ("heic", "png"))
    assert heic.shape == same.shape
    # Colours are stored at half the size, and do not come back to the bit.
    assert np.abs(heic - same).mean() < 0.1 * same.std()


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="reads HEIC")
def test_b7_heic_names_the_package_that_reads_it(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").write_bytes(HEIC_HEADER)
    (tmp_path / "photos" / "a.png").write_bytes(png())
    done = extract(tmp_path / "photos", tmp_path / "out")
    assert "1 other files passed over: 1 .heic (for .heic: pip install pillow-heif)" in done.stderr
    done = sail("pca", tmp_path / "photos" / "a.heic", "--out", tmp_path / "b.png", "--model", "raw/14")
    assert says_one_line(done, "a.heic: HEIC is not read without pillow-heif: pip install pillow-heif")
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        backbone("raw/14").encode([HEIC_HEADER])
