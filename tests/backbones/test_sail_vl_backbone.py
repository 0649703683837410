"""SAIL-VL and its towers as backbones: tiles, thumbnails, native sizes, projected features."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import noise
from PIL import Image
from sail_vl_golden import CHECKPOINTS, GOLDEN, golden_set
from torch.testing import assert_close

from sail_encoder import load_backbone
from sail_encoder.backbones.registry import describe, resolve_features
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import CheckpointError, UserError
from sail_encoder.models.sail_vl.tiles import tile_image

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TILE = 56
OPTIONS = ({}, {"msac": True}, {"project": True}, {"max_tiles": 3})


@pytest.fixture(scope="module", params=CHECKPOINTS)
def golden(request):
    return golden_set(request.param)


@pytest.fixture(scope="module")
def backbone(golden):
    return load_backbone(str(golden.checkpoint))


@pytest.fixture(scope="module")
def wide():
    """A photograph-like image of 5 x 2 tiles."""
    small = Image.fromarray(noise(6, 14))
    return small.resize((230, 100), Image.Resampling.BICUBIC)


def seen(backbone, image):
    """Normed states [rows, columns, C] of the last block for an image that fills one view."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    (states,) = backbone.get_intermediate_layers(backbone.normalize(pixels), 1, reshape=True)
    return states[0].permute(1, 2, 0)


def test_tower_states_are_those_of_the_published_code(golden, backbone):
    recorded = golden.tensors()
    classes = backbone.tower.num_class_tokens
    layers = backbone.get_intermediate_layers(recorded["tiles"], range(backbone.num_layers), norm=False)
    for mine, theirs in zip(layers, recorded["vit_hidden_states"][-len(layers) :], strict=True):
        assert_close(mine, theirs[:, classes:], **CLOSE)
    (last,) = backbone.get_intermediate_layers(recorded["tiles"], 1)
    assert_close(last, recorded["vit_last_hidden_state"][:, classes:], **CLOSE)


def test_projected_features_are_those_that_the_language_model_receives(golden):
    recorded = golden.tensors()
    (projected,) = load_backbone(str(golden.checkpoint), project=True).get_intermediate_layers(recorded["tiles"], 1)
    assert_close(projected, recorded["projected"], **CLOSE)


def test_the_projector_reads_the_block_that_it_was_trained_on(tmp_path):
    golden = golden_set("sail_vl_internvit")
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden.checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "select_layer": -2}))
    backbone = load_backbone(str(folder), project=True)
    assert backbone.num_layers == config["vision_config"]["num_hidden_layers"] - 1
    recorded = golden.tensors()
    (projected,) = backbone.get_intermediate_layers(recorded["tiles"], 1)
    assert_close(projected, recorded["projected_select_layer_-2"], **CLOSE)
    with pytest.raises(UserError, match="those of layer 1 alone"):
        backbone.get_intermediate_layers(recorded["tiles"], [0])
    with pytest.raises(UserError, match="those of layer 1 alone"):
        load_backbone(str(folder), project=True, layers=1)


def test_native_sizes_interpolate_positions_as_the_published_internvit():
    golden = golden_set("sail_vl_internvit")
    recorded = golden.tensors()
    (states,) = load_backbone(str(golden.checkpoint)).get_intermediate_layers(recorded["wide_pixels"], 1)
    assert_close(states, recorded["wide_last_hidden_state"][:, 1:], **CLOSE)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_images_of_one_pixel_a_side_have_features(backbone, size):
    for rule in ("tiles", "native"):
        (features,) = backbone.encode([noise(*size)], resize=rule)
        assert features.image_size == size
        assert features.grid.isfinite().all()
    with pytest.raises(UserError, match="layer 99 does not exist"):
        backbone.encode([noise(*size)], layers=99)


def test_tiles_stand_in_the_grid_where_they_lie_in_the_image(backbone, wide):
    (features,) = backbone.encode([wide])
    assert features.geometry.tiles == (2, 5)
    assert features.resized_size == (2 * TILE, 5 * TILE)
    assert features.grid_size == (8, 20)
    *tiles, thumbnail = tile_image(wide, 10, tile_size=TILE)
    for index, tile in enumerate(tiles):
        top, left = 4 * (index // 5), 4 * (index % 5)
        assert_close(features.grid[top : top + 4, left : left + 4], seen(backbone, tile), **CLOSE)
    assert_close(features.thumbnail[backbone.num_layers - 1], seen(backbone, thumbnail), **CLOSE)
    assert features.patch_box(4, 5) == (5 * 230 / 20, 50.0, 6 * 230 / 20, 62.5)


def test_an_image_of_one_tile_is_its_own_thumbnail(backbone):
    (features,) = backbone.encode([noise(60, 60)])
    assert features.geometry.tiles == (1, 1)
    assert_close(features.thumbnail[backbone.num_layers - 1], features.grid)


def test_a_second_grid_is_averaged_over_the_first(golden, backbone, wide):
    twice = load_backbone(str(golden.checkpoint), msac=True)
    (once,), (features,) = backbone.encode([wide]), twice.encode([wide])
    rows, columns = features.geometry.second_tiles
    assert 5 % columns or 2 % rows
    tiles = tile_image(wide, 10, tile_size=TILE, msac=True)[10:-1]
    assert len(tiles) == rows * columns
    second = torch.cat(
        [torch.cat([seen(backbone, tile) for tile in tiles[row * columns :][:columns]], 1) for row in range(rows)]
    )
    resized = torch.nn.functional.interpolate(second.permute(2, 0, 1)[None], (8, 20), mode="bilinear")[0]
    assert_close(features.grid, (once.grid + resized.permute(1, 2, 0)) / 2, **CLOSE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_is_one_by_one(golden, options, wide):
    backbone = load_backbone(str(golden.checkpoint), **options)
    images = [noise(60, 60), wide, noise(130, 40), wide]
    together = backbone.encode(images)
    for image, packed in zip(images, together, strict=True):
        (alone,) = backbone.encode([image])
        assert_close(packed.grid, alone.grid, **CLOSE)
        assert packed.thumbnail.keys() == alone.thumbnail.keys() != set()
    native = backbone.encode(images, resize="native")
    for image, packed in zip(images, native, strict=True):
        (alone,) = backbone.encode([image], resize="native")
        assert_close(packed.grid, alone.grid, **CLOSE)
        assert packed.geometry.tiles is None
        assert not packed.thumbnail


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_described_as_it_is_loaded(golden, options):
    spec, backbone = describe(str(golden.checkpoint), **options), load_backbone(str(golden.checkpoint), **options)
    assert spec == backbone.spec
    assert spec.parameters() == sum(weight.numel() for weight in backbone.model.parameters())
    random = load_backbone(str(golden.checkpoint), pretrained=False, **options)
    assert random.spec == spec
    last = spec.num_layers - 1
    assert random.fingerprint(last) == load_backbone(str(golden.checkpoint), pretrained=False, **options).fingerprint(
        last
    )
    assert random.fingerprint(last) != backbone.fingerprint(last)


def test_only_what_is_asked_for_is_loaded_and_run(golden, wide):
    first = load_backbone(str(golden.checkpoint), layers=1)
    assert first.num_layers == len(first.tower.blocks) == 1
    whole = load_backbone(str(golden.checkpoint))
    assert_close(first.encode([wide])[0].grid, whole.encode([wide], layers=0)[0].grid)
    assert first.fingerprint(0) == whole.fingerprint(0)
    prepared = whole.prepare(wide, whole.spec.resize)
    assert len(prepared.views) == 10
    assert prepared.cost == 10 * (16 + whole.tower.num_class_tokens)
    assert len(whole.prepare_all(wide, whole.spec.resize).views) == 11


def test_a_tower_alone_is_a_backbone():
    folder = str(GOLDEN / "sailvit/checkpoint")
    backbone = load_backbone(folder)
    recorded = golden_set("sailvit").tensors()
    (states,) = backbone.get_intermediate_layers(recorded["pixel_values"], 1)
    assert_close(states, recorded["last_hidden_state"], **CLOSE)
    assert describe(folder) == backbone.spec
    with pytest.raises(CheckpointError, match="vision tower alone and has no projector"):
        load_backbone(folder, project=True)


def test_rules_and_options_that_do_not_fit(golden):
    name = str(golden.checkpoint)
    with pytest.raises(UserError, match=r"msac has no effect on sail-tiny; it is for sail_vl checkpoints"):
        load_backbone("sail-tiny", msac=True)
    with pytest.raises(UserError, match="resize tiles is for backbones that see tiles"):
        load_backbone("sail-tiny").encode([noise(20, 20)], resize="tiles")
    with pytest.raises(UserError, match="resize tiles is for backbones that see tiles"):
        resolve_features("raw/14", "-1", "tiles", None)
    with pytest.raises(UserError, match="tiles and their sides start at 1"):
        describe(name, max_tiles=0)
    assert str(describe(name, max_tiles=4).resize) == "tiles56x4"
    assert Resize.parse("tiles56x4") == describe(name, max_tiles=4).resize
    assert describe(name).resize.override("tiles", None) == describe(name).resize


def test_a_checkpoint_of_another_kind_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="is a 'bert' checkpoint, not SAIL or a relative"):
        load_backbone(str(tmp_path))
