"""Parity with the published code, through the public API."""

import json

import pytest
import torch
from helpers import GOLDEN, GOLDEN_IDS, golden_inputs, relative_error
from PIL import Image
from safetensors.torch import load_file

from sail_encoder import SailForCausalLM, SailImageProcessor, load_backbone
from sail_encoder.images.resizing import native_grid
from sail_encoder.models.sail.positions import prefix_positions, text_and_image_positions

SIZES = json.loads((GOLDEN / "image_sizes.json").read_text())


def test_grids_of_all_recorded_sizes():
    assert len(SIZES) == 200
    for entry in SIZES:
        grid = native_grid((entry["height"], entry["width"]), entry["patch_size"], entry["max_tokens"])
        assert list(grid) == entry["grid"], entry


def test_patches(golden, golden_backbone):
    for case in golden:
        patched = golden_backbone.prepare(case.image, golden_backbone.spec.resize)
        assert patched.geometry.grid == case.grid
        assert patched.geometry.image_size == case.size
        patches = golden_backbone.normalize(torch.from_numpy(patched.views))
        assert relative_error(patches, case.tensors["patches"]) < 1e-6
        processed = SailImageProcessor()(Image.open(case.image), return_tensors="pt")
        assert processed["image_grid_hw"].tolist() == [list(case.grid)]
        assert relative_error(processed["pixel_values"], case.tensors["patches"]) < 1e-6


def test_position_ids(golden):
    for case in golden:
        recorded = case.tensors["position_ids"]
        ids = case.tensors["input_ids"]
        assert torch.equal(text_and_image_positions(ids, [case.grid], 301, 302, None)[:, 0], recorded)
        prefix = case.grid[0] * case.grid[1] + 2
        assert torch.equal(prefix_positions([case.grid]), recorded[:, :prefix])


def check_hidden_states(backbone, golden, tolerance=1e-5):
    images = [case.image for case in golden]
    raw = backbone.encode(images, layers="all", norm=False)
    last = backbone.encode(images, layers=-1)
    for case, all_layers, final in zip(golden, raw, last, strict=True):
        recorded = case.tensors["hidden_states"]
        assert len(recorded) == backbone.num_layers + 1
        for index in range(backbone.num_layers - 1):
            assert relative_error(all_layers.layers[index], recorded[index + 1]) < tolerance
        assert relative_error(final.grid, recorded[-1]) < tolerance


def test_hidden_states(golden, golden_backbone):
    check_hidden_states(golden_backbone, golden)


def test_every_hidden_state_through_transformers(golden):
    model = SailForCausalLM.from_pretrained(GOLDEN / "checkpoint", **GOLDEN_IDS).model
    for case in golden:
        grids = torch.tensor([case.grid])
        with torch.no_grad():
            out = model(pixel_values=case.tensors["patches"], image_grid_hw=grids, output_hidden_states=True)
        recorded = case.tensors["hidden_states"].flatten(1, 2)
        assert len(out.hidden_states) == len(recorded)
        for state, reference in zip(out.hidden_states, recorded, strict=True):
            assert relative_error(state, reference) < 1e-5


@pytest.mark.parametrize("together", [False, True])
def test_first_logits(golden, together):
    """Singly, and all in one batch padded on the left."""
    model = SailForCausalLM.from_pretrained(GOLDEN / "checkpoint", **GOLDEN_IDS)
    for cases in [golden] if together else [[case] for case in golden]:
        with torch.no_grad():
            out = model(**golden_inputs(cases), logits_to_keep=1)
        for logits, case in zip(out.logits[:, -1], cases, strict=True):
            assert relative_error(logits, case.tensors["first_logits"]) < 1e-4


@pytest.fixture
def sharded_pickles(tmp_path):
    """The same weights as the Hub holds them: sharded pickles under the older architecture name."""
    state = load_file(GOLDEN / "checkpoint" / "model.safetensors")
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MMistralForCausalLM"]}))
    names = sorted(state)
    weight_map = {}
    for shard in range(3):
        file = f"pytorch_model-{shard + 1:05d}-of-00003.bin"
        torch.save({name: state[name] for name in names[shard::3]}, tmp_path / file)
        weight_map.update(dict.fromkeys(names[shard::3], file))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_sharded_pickles_under_the_older_name(golden, golden_backbone, sharded_pickles):
    backbone = load_backbone(str(sharded_pickles), **GOLDEN_IDS)
    check_hidden_states(backbone, golden)
    assert backbone.fingerprint(2) == golden_backbone.fingerprint(2)
    model = SailForCausalLM.from_pretrained(sharded_pickles, **GOLDEN_IDS)
    assert torch.equal(model.model.vis_embed.weight, golden_backbone.model.vis_embed.weight)


def test_bfloat16_features(golden, golden_backbone):
    half = load_backbone(str(GOLDEN / "checkpoint"), dtype="bfloat16", **GOLDEN_IDS)
    images = [case.image for case in golden]
    for exact, rounded in zip(golden_backbone.encode(images), half.encode(images), strict=True):
        assert rounded.grid.dtype == torch.bfloat16
        cosine = torch.cosine_similarity(exact.grid, rounded.grid.float(), dim=-1)
        assert cosine.min() > 0.999
