"""From images to label maps: every class must land on its own pixels, whatever the way of looking."""

import numpy as np
import pytest
import torch
from helpers import noise
from PIL import Image
from torch.nn import functional as F

from heads.dense import PADDING
from heads.dense.inference import Canvas, Inference, predict, window_starts
from heads.dense.linear import LinearHead
from heads.dense.segmenter import Segmenter
from heads.dense.upsampling import CHUNK_ELEMENTS, most_likely
from sail_encoder import load_backbone
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.resizing import Resize

CELLS = (3, 8)
"""Rows and columns of the colored cells; neither divides the 37x91 patches of the test image."""


def cell_colors():
    rows, columns = np.mgrid[: CELLS[0], : CELLS[1]].reshape(2, -1)
    return np.stack((40 + 40 * rows, 20 + 17 * columns, np.full(rows.shape, 128)), axis=1).astype(np.uint8)


def colored_cells(height, width):
    """An image whose color says which cell a pixel is in, and the number of that cell per pixel."""
    labels = (np.arange(height) * CELLS[0] // height)[:, None] * CELLS[1] + np.arange(width) * CELLS[1] // width
    return Image.fromarray(cell_colors()[labels]), labels


@pytest.fixture(scope="module")
def color_segmenter():
    """Classifies a patch by the cell color that is nearest to its mean."""
    backbone = load_backbone("raw/14")
    colors = torch.from_numpy(cell_colors()).float() / 255
    colors = (colors - torch.tensor(backbone.spec.image_mean)) / torch.tensor(backbone.spec.image_std)
    head = LinearHead([588], len(colors)).eval()
    weight = (2 * colors).repeat_interleave(196, dim=1) / 196
    head.classifier.weight.data = 300 * weight[..., None, None]
    head.classifier.bias.data = -300 * colors.square().sum(1)
    return Segmenter(backbone, head, FeatureSpec("raw/14", (0,), weights=""))


def predict_one(segmenter, inference, image):
    (labels,) = predict(segmenter, inference, [image], lambda item: item)
    return labels.numpy()


def away_from_borders(labels, margin):
    """Pixels around which all labels are the same."""

    def highest(values):
        down = F.max_pool2d(values, (2 * margin + 1, 1), 1, (margin, 0))
        return F.max_pool2d(down, (1, 2 * margin + 1), 1, (0, margin))

    tensor = torch.from_numpy(labels)[None, None].float()
    return (highest(tensor) == -highest(-tensor))[0, 0].numpy()


WAYS = {
    "whole": Inference(Resize()),
    "mirrored": Inference(Resize(), flip=True),
    "windows": Inference(Resize(), (140, 224), (98, 150)),
    "windows at an odd size": Inference(Resize(short=400), (140, 224), (101, 149)),
    "scales": Inference(Resize(), scales=(0.75, 1.0, 1.5), flip=True),
    "padded": Inference(Resize(), flip=True, fit="pad"),
    "padded windows at an odd size": Inference(Resize(short=401), (140, 224), (101, 149), flip=True, fit="pad"),
    "padded scales": Inference(Resize(short=500), (560, 560), (300, 300), (0.75, 1.0), fit="pad"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(25 * 14, 60 * 14), (25 * 14 - 5, 60 * 14 + 3)])
def test_classes_land_on_their_pixels(way, size, color_segmenter):
    image, labels = colored_cells(*size)
    predicted = predict_one(color_segmenter, WAYS[way], image)
    assert predicted.shape == size
    safe = away_from_borders(labels, 20)
    if WAYS[way].fit == "pad":
        # The mean of a patch, by which this head tells its color, takes in the border; mirrored, it is at the left.
        safe[-20:], safe[:, -20:], safe[:, :20] = False, False, False
    assert safe.mean() > 0.25
    assert (predicted == labels)[safe].all()
    assert (predicted == labels).mean() > 0.93


def test_a_border_fills_up_whole_patches_and_is_not_scored():
    image = Image.fromarray(noise(50, 75))
    canvas = Canvas(image, Inference(Resize(), fit="pad"), 14, Image.Resampling.BILINEAR)
    (tile,) = canvas.tiles
    assert (canvas.sizes, tile.size, tile.pixels.shape) == ([(50, 75)], (50, 75), (56, 84, 3))
    assert (tile.pixels[50:] == PADDING).all()
    assert (tile.pixels[:, 75:] == PADDING).all()
    np.testing.assert_array_equal(tile.pixels[:50, :75], np.asarray(image))
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    canvas.add(tile, logits)
    enlarged = F.interpolate(logits[None], (56, 84), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(canvas.labels(), enlarged[:, :50, :75].argmax(0))


def test_an_image_of_too_many_patches_shrinks_though_it_would_be_padded():
    way = Inference(Resize(max_tokens=12), fit="pad")
    canvas = Canvas(Image.fromarray(noise(70, 75)), way, 14, Image.Resampling.BILINEAR)
    assert canvas.sizes == [(42, 42)]
    small = Canvas(Image.fromarray(noise(40, 50)), way, 14, Image.Resampling.BILINEAR)
    assert small.sizes == [(40, 50)]


def small_segmenter(backbone, classes=6, seed=0):
    torch.manual_seed(seed)
    head = LinearHead([64, 64], classes).eval()
    torch.nn.init.normal_(head.classifier.weight)
    return Segmenter(backbone, head, FeatureSpec("small", (0, 2), weights=""))


def test_one_window_over_the_whole_image_is_whole_inference(small_backbone):
    segmenter, image = small_segmenter(small_backbone), Image.fromarray(noise(14 * 5, 14 * 7))
    whole = predict_one(segmenter, Inference(Resize()), image)
    window = predict_one(segmenter, Inference(Resize(), (14 * 5, 14 * 7), (14, 14)), image)
    larger = predict_one(segmenter, Inference(Resize(), (14 * 9, 14 * 9), (100, 100)), image)
    np.testing.assert_array_equal(whole, window)
    np.testing.assert_array_equal(whole, larger)
    assert len(np.unique(whole)) > 2


def test_overlapping_windows_are_averaged_with_exact_weights():
    image = Image.fromarray(noise(14 * 6, 14 * 9))
    canvas = Canvas(image, Inference(Resize(), (56, 70), (31, 45)), 14, Image.Resampling.BILINEAR)
    expected = torch.zeros(2, 84, 126)
    weights = torch.zeros(84, 126)
    generator = torch.Generator().manual_seed(0)
    for tile in canvas.tiles:
        logits = torch.randn(2, 4, 5, generator=generator)
        canvas.add(tile, logits)
        enlarged = F.interpolate(logits[None], (56, 70), mode="bilinear", align_corners=False)[0]
        expected[:, tile.top : tile.top + 56, tile.left : tile.left + 70] += enlarged
        weights[tile.top : tile.top + 56, tile.left : tile.left + 70] += 1
    assert canvas.missing == 0
    assert weights.min() >= 1
    assert weights.max() > 1
    torch.testing.assert_close(canvas.weights[0], weights, rtol=0, atol=0)
    torch.testing.assert_close(canvas.sums[0], expected)
    np.testing.assert_array_equal(canvas.labels(), (expected / weights).argmax(0))


def random_logits(canvas, classes=3):
    """Logits of each tile of a canvas."""
    generator = torch.Generator().manual_seed(0)
    shapes = [[side // 14 for side in tile.pixels.shape[:2]] for tile in canvas.tiles]
    return [torch.randn(classes, *shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("window", [(28, 42), (70, 70)])
def test_views_are_let_go_of_when_they_are_added_up(window, monkeypatch):
    image = Image.fromarray(noise(14 * 5, 14 * 7))
    way = Inference(Resize(), window, (20, 30), scales=(0.6, 1.0, 1.4, 1.8), flip=True)
    canvas = Canvas(image, way, 14, Image.Resampling.BILINEAR)
    logits, held = random_logits(canvas), []
    for tile, values in zip(canvas.tiles, logits, strict=True):
        canvas.add(tile, values)
        held.append(len(canvas.sums) + (canvas.total is not None))
    assert max(held) == 2
    assert not canvas.sums
    assert not canvas.weights
    monkeypatch.setattr(Canvas, "_is_smaller_added_up", lambda canvas: False)
    beside = Canvas(image, way, 14, Image.Resampling.BILINEAR)
    for tile, values in zip(beside.tiles, logits, strict=True):
        beside.add(tile, values)
    assert len(beside.sums) == 8
    np.testing.assert_array_equal(canvas.labels(), beside.labels())


@pytest.mark.parametrize(
    ("size", "way"),
    [
        ((140, 140), Inference(Resize(), scales=(0.5, 1.0, 2.0), flip=True)),
        ((140, 140), Inference(Resize(), (56, 56), (56, 56))),
        ((700, 700), Inference(Resize.parse("short70"), (56, 56), (28, 28), scales=(0.9, 1.0), flip=True)),
    ],
    ids=["maps of patches", "one view", "views of a much larger image"],
)
def test_views_stay_as_they_are_where_their_sum_would_be_larger(size, way):
    canvas = Canvas(Image.fromarray(noise(*size)), way, 14, Image.Resampling.BILINEAR)
    for tile, values in zip(canvas.tiles, random_logits(canvas), strict=True):
        canvas.add(tile, values)
    assert canvas.total is None
    assert len(canvas.sums) == len(canvas.sizes)
    assert canvas.labels().shape == size


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (512, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (100, 40, 40, [0, 40, 60]),
        (100, 40, 10, [0, 10, 20, 30, 40, 50, 60]),
    ],
)
def test_windows_cover_the_length(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_many_images_in_packs_are_as_one_by_one(small_backbone):
    segmenter = small_segmenter(small_backbone)
    sizes = [(50, 70), (70, 50), (14, 14), (50, 70), (200, 30), (33, 190)]
    images = [Image.fromarray(noise(*size, seed)) for seed, size in enumerate(sizes)]
    for way in (Inference(Resize()), Inference(Resize(), (42, 42), (28, 28), scales=(1.0, 1.3), flip=True)):
        together = [labels.numpy() for labels in predict(segmenter, way, images, lambda item: item)]
        assert [labels.shape for labels in together] == sizes
        for image, labels in zip(images, together, strict=True):
            assert (predict_one(segmenter, way, image) == labels).mean() > 0.999


@pytest.mark.parametrize("elements", [1, 41 * 11 * 4, 2**26])
def test_classes_are_those_of_the_enlarged_logits_in_any_chunk(elements, monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", elements)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(11, rows, columns, generator=generator) for rows, columns in ((5, 7), (90, 40))]
    enlarged = [F.interpolate(view[None], (63, 41), mode="bilinear", align_corners=False)[0] for view in views]
    np.testing.assert_array_equal(most_likely(views[:1], (63, 41)), enlarged[0].argmax(0))
    expected = (enlarged[0].softmax(0) + enlarged[1].softmax(0)).argmax(0)
    np.testing.assert_array_equal(most_likely(views, (63, 41)), expected)


def test_the_backbone_stops_at_the_deepest_layer_and_has_no_gradients(small_backbone):
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(small_backbone.model.layers)
    ]
    segmenter = Segmenter(small_backbone, LinearHead([64], 2), FeatureSpec("small", (1,), weights=""))
    patched = [small_backbone.prepare(noise(28, 42), Resize()) for _ in range(3)]
    (maps,) = segmenter.maps(small_backbone.collate(patched))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]
    assert maps.shape == (3, 64, 2, 3)
    assert not maps.requires_grad
    expected = small_backbone.encode([noise(28, 42)], layers=1)[0].grid.permute(2, 0, 1)
    torch.testing.assert_close(maps[1], expected)
