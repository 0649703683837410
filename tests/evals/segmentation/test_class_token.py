"""Dense heads that read the class token beside each patch."""

import json

import pytest
import torch
from drawn_data import write_data
from helpers import noise

from heads.dense.registry import load_dense_head
from heads.dense.segmenter import load_segmenter
from sail_cli import main
from sail_encoder.images.resizing import Resize
from sail_encoder.store.reading import FeatureFolder

VIT = ["--model", "timm/test_vit", "--random-weights", "--class-token", "--resize", "64"]
FAST = ["--crop", "32", "--steps", "3", "--warmup", "1", "--batch_size", "2", "--overlays", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_data(tmp_path_factory.mktemp("data"), train=4, val=2))


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_a_head_is_trained_on_both_and_reads_both(mode, data, tmp_path):
    assert main(["segment", "train", data, "--out", str(tmp_path), "--mode", mode, *VIT, *FAST]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["protocol"]["class_token"] is True
    trained = load_dense_head(tmp_path)
    assert trained.head.settings["in_channels"] == [128]
    segmenter = load_segmenter(trained)
    backbone = segmenter.backbone
    batch = backbone.collate([backbone.prepare(noise(64, 64, seed), Resize(fixed=(64, 64))) for seed in (0, 1)])
    encoded = backbone.forward(batch, trained.source.layers, trained.source.norm)
    [maps] = segmenter.maps(batch)
    token = encoded.class_tokens[trained.source.layers[0]]
    torch.testing.assert_close(
        maps[:, :64].flatten(2).transpose(1, 2).flatten(0, 1), encoded.patches[trained.source.layers[0]]
    )
    torch.testing.assert_close(maps[:, 64:], token[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    assert not torch.equal(token[0], token[1])
    if mode == "cached":
        [cache] = (tmp_path / "cache").iterdir()
        assert FeatureFolder(cache).read(FeatureFolder(cache).entries[0]).shape[-1] == 128
    assert main(["segment", "eval", data, "--head", str(tmp_path)]) == 0


def test_a_model_without_one_is_refused(data, tmp_path, capsys):
    command = ["segment", "train", data, "--out", str(tmp_path), "--model", "raw/14", "--class-token", *FAST]
    assert main(command) == 2
    assert "--class-token reads a class token, but raw/14 has none; leave it out" in capsys.readouterr().err
