"""What a batch holds depends on the seed and its number alone, and features and labels show the same place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_data import write_data
from helpers import unpatchify

from evals.errors import DatasetError
from evals.segmentation.augment import Augmentation
from evals.segmentation.batches import CachedBatches, OnlineBatches, Sampler, cache_grids, check_budget
from evals.segmentation.layouts import DataSource
from heads.dense import IGNORE
from heads.dense.linear import LinearHead
from heads.dense.segmenter import Segmenter
from sail_encoder import load_backbone
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import UserError

SOURCE = FeatureSpec("raw/14", (0,), weights="")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return DataSource(str(write_data(tmp_path_factory.mktemp("data"), train=7))).open("train")[0]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(load_backbone("raw/14"), LinearHead([588], 4), SOURCE)


@pytest.fixture(scope="module")
def cached(data, segmenter, tmp_path_factory):
    return cache_grids(data.samples, segmenter.backbone, SOURCE, tmp_path_factory.mktemp("cache"))


def make(kind, segmenter, data, cached, seed=0):
    if kind == "online":
        return OnlineBatches(segmenter, data, Augmentation((42, 56)), 3, seed)
    return CachedBatches(cached, data, (3, 4), 14, True, 3, seed, torch.device("cpu"))


def test_each_epoch_is_another_permutation():
    sampler = Sampler(7, seed=3)
    epochs = [[sampler.draw(7 * epoch + place)[0] for place in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [Sampler(7, seed=4).draw(place)[0] for place in range(7)] != epochs[0]


@pytest.mark.parametrize("kind", ["online", "cached"])
def test_a_batch_depends_on_its_number_alone(kind, segmenter, data, cached):
    batches = make(kind, segmenter, data, cached)
    from_start = list(batches.between(0, 5))
    from_middle = list(make(kind, segmenter, data, cached).between(3, 5))
    assert [len(labels) for _, labels in from_start] == [3] * 5
    for one, other in zip(from_start[3:], from_middle, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    maps, labels = from_start[0]
    _, others = next(make(kind, segmenter, data, cached, seed=1).between(0, 1))
    assert not torch.equal(others, labels)
    assert maps[0].shape == (3, 588, 3, 4)
    assert labels.shape == (3, 42, 56)


def test_cached_crops_and_labels_show_the_same_place(segmenter, data, cached):
    """Where no crop is mirrored, the cached values of raw patches are pixels, whose color says their class."""
    from drawn_data import COLORS

    batches = CachedBatches(cached, data, (3, 4), 14, False, 7, 0, torch.device("cpu"))
    ((maps, classes),) = batches.between(0, 1)
    mean, std = (
        torch.tensor(values) for values in (segmenter.backbone.spec.image_mean, segmenter.backbone.spec.image_std)
    )
    patches = maps[0].permute(0, 2, 3, 1).reshape(7, 12, 588).numpy()
    for crop, labels in zip(patches, classes, strict=True):
        pixels = (torch.from_numpy(unpatchify(crop, (3, 4), 14)) * std + mean) * 255
        distance = (pixels[..., None, :] - torch.from_numpy(COLORS).float()).square().sum(-1)
        counted = labels != IGNORE
        assert (distance.argmin(-1) == labels)[counted].float().mean() > 0.97


def test_mirrored_grids_have_mirrored_labels(data, cached):
    plain = CachedBatches(cached, data, (99, 99), 14, False, 1, 0, torch.device("cpu"))
    turned = CachedBatches(cached, data, (99, 99), 14, True, 1, 0, torch.device("cpu"))
    mirrored = 0
    for position in range(7):
        (grid, labels), (other, others) = plain.make(position), turned.make(position)
        rows, columns = plain.entries[plain.sampler.draw(position)[0]].grid
        assert (labels[14 * rows :] == IGNORE).all()
        if (grid == other).all():
            continue
        mirrored += 1
        np.testing.assert_array_equal(other[:, :rows, :columns], grid[:, :rows, :columns][:, :, ::-1])
        np.testing.assert_array_equal(others[: 14 * rows, : 14 * columns], labels[: 14 * rows, : 14 * columns][:, ::-1])
    assert 1 <= mirrored <= 6


def test_the_cache_is_stored_in_float16_and_made_once(data, segmenter, cached):
    assert cached.read(cached.entries[0]).dtype == np.float16
    stamps = {path: path.stat().st_mtime_ns for path in cached.folder.rglob("*.npy")}
    assert len(stamps) == 7
    cache_grids(data.samples, segmenter.backbone, SOURCE, cached.folder.parent)
    assert stamps == {path: path.stat().st_mtime_ns for path in cached.folder.rglob("*.npy")}
    cache_grids(data.samples, segmenter.backbone, replace(SOURCE, size=Resize(short=42)), cached.folder.parent)
    assert len(list(cached.folder.parent.iterdir())) == 2


def test_what_the_cache_takes_is_said_and_held_against_the_budget(data, segmenter, capsys):
    check_budget(data.samples, segmenter.backbone.spec, SOURCE, 1.0)
    assert "the budget is 1 GB" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"more than the 1e-05 GB of --cache_gb"):
        check_budget(data.samples, segmenter.backbone.spec, SOURCE, 1e-5)


def test_images_that_the_cache_lacks_are_told(data, cached, tmp_path):
    other = DataSource(str(write_data(tmp_path, train=2))).open("train")[0]
    with pytest.raises(DatasetError, match="has no features of 2 images"):
        CachedBatches(cached, other, (3, 4), 14, True, 1, 0, torch.device("cpu"))


def test_an_image_that_breaks_while_training_is_named(segmenter, tmp_path):
    data = DataSource(str(write_data(tmp_path, train=2))).open("train")[0]
    (tmp_path / "images/train/1.png").write_bytes(b"gone")
    with pytest.raises(DatasetError, match=r"^[^:]*images/train/1\.png: not an image"):
        list(OnlineBatches(segmenter, data, Augmentation((42, 56)), 2, 0).between(0, 2))
