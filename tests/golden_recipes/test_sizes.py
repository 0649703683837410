"""The sizes at which named recipes look at images, at odd sizes of these, and the windows that they cut."""

import numpy as np
import pytest
from PIL import Image
from recipe_values import draw, inference, probe_settings, recorded, segmentation_request

from evals.crops import CroppedImages
from evals.datasets.labelled import LabelledImages
from evals.options import CropOptions
from evals.segmentation.augment import Augmentation
from heads.dense.inference import Canvas
from sail_encoder.images.resizing import Resize
from sail_encoder.images.sources import ImageList

LONGEST = 4
"""Aspect from which mmsegmentation's limit of the longer side counts; docs/segmentation_protocols.md says so."""


def entries(name, part):
    """Recorded sizes; where a source holds the longer side, without those that are longer."""
    values, limited = recorded(name), {"ade20k_linear_dinov2", "ade20k_upernet_internvl"}
    free = name not in limited or (name == "ade20k_upernet_internvl" and part == "evaluation_resize")
    return [entry for entry in values[part] if free or max(entry["image"]) <= LONGEST * min(entry["image"])]


def windowed(name, part_size, patch_size, **changes):
    """Size of the view and places of the windows of an image."""
    way = inference(segmentation_request(name, **changes), patch_size)
    image = Image.new("RGB", (part_size[1], part_size[0]))
    canvas = Canvas(image, way, patch_size, Image.Resampling.NEAREST)
    return list(canvas.sizes[0]), sorted([tile.top, tile.left, *tile.size] for tile in canvas.tiles), canvas


@pytest.mark.parametrize(
    ("name", "patch_size", "changes"),
    [
        ("ade20k_linear_dinov3", 16, {"crop": "512", "window": "512"}),
        ("ade20k_linear_dinov2", 16, {"crop": "512", "window": "512"}),
        ("ade20k_upernet_internvl", 14, {}),
    ],
)
def test_evaluation(name, patch_size, changes):
    found = entries(name, "evaluation_resize")
    assert len(found) >= 9
    for entry in found:
        size, windows, canvas = windowed(name, entry["image"], patch_size, **changes)
        assert size == entry["resized"]
        assert windows == entry["windows"]
        assert not any(tile.has_border for tile in canvas.tiles)


def test_patches_of_14_see_as_many_windows_of_dinov2_on_an_image_of_the_same_size():
    for entry in entries("ade20k_linear_dinov2", "evaluation_resize"):
        size, windows, canvas = windowed("ade20k_linear_dinov2", entry["image"], 14)
        assert size == entry["resized"]
        assert len(windows) == len(entry["windows"])
        assert {side for tile in canvas.tiles for side in tile.pixels.shape[:2]} == {518}
        assert entry["windows_padded_to"] == [[518, 518]]


@pytest.mark.parametrize("name", ["ade20k_linear_dinov3", "ade20k_linear_dinov2", "ade20k_upernet_internvl"])
def test_training(name):
    found, rule = entries(name, "training_resize"), Resize.parse(segmentation_request(name).resize)
    assert len(found) >= 9
    for entry in found:
        augmentation = Augmentation((56, 56), rule, (entry["factor"], entry["factor"]))
        size = augmentation._jittered_size(tuple(entry["image"]), np.random.default_rng(0))
        assert list(size) == entry["resized"]


def test_the_shorter_side_is_what_was_asked_for_where_it_is_whole_patches():
    assert Resize.parse("short512").grid((512, 683), 16) == (32, 43)
    assert Resize.parse("short512").grid((683, 512), 16) == (43, 32)
    for entry in recorded("ade20k_upernet_internvl")["evaluation_resize"]:
        rows, columns = Resize.parse("short504", 2**31).grid(tuple(entry["image"]), 14)
        assert [rows * 14, columns * 14] == entry["resized"]


def crops(name):
    """The pipeline for testing of a recipe whose probes see crops."""
    settings = probe_settings(name)
    options = CropOptions.of(settings["crop"], None, settings.get("test_resize"))
    nothing = LabelledImages("none", ImageList("none", []), [], np.array([]), [])
    return CroppedImages(nothing, options.side, None, options.test_resize).transform


CROPPED = (
    "imagenet1k-dinov3-linear",
    "imagenet1k-internvl-linear",
    "imagenet1k-aim-attentive",
)


@pytest.mark.parametrize("name", CROPPED)
def test_crops(name):
    resize, crop = crops(name).transforms
    for entry in recorded(name)["evaluation_resize"]:
        height, width = entry["image"]
        resized = resize(Image.new("RGB", (width, height)))
        assert [resized.height, resized.width] == entry["resized"]
        cropped = crop(resized)
        assert [cropped.height, cropped.width] == entry["cropped"]


@pytest.mark.parametrize("name", CROPPED[:2])
def test_pixels_of_crops(name):
    """DINOv3 resizes tensors, whose bicubic filter is a level or two from Pillow's."""
    values = recorded(name)["evaluation_pixels"]
    height, width = values["inputs"]["enlarged"]
    small = Image.fromarray(draw(values["inputs"]["small"]).astype(np.uint8))
    pixels = np.asarray(crops(name)(small.resize((width, height), Image.Resampling.BICUBIC))).astype(int)
    found = np.array([pixels[row, column] for row, column in values["places"]])
    np.testing.assert_allclose(found, values["values"], atol=2)
    assert pixels.mean() == pytest.approx(values["mean"], abs=0.1)
