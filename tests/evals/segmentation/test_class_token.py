"""Dense heads that read the class token beside each patch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawn_data import write_data
from helpers import noise

from evals.report import describe_features
from evals.segmentation.batches import check_budget
from evals.segmentation.pairs import Sample
from heads.contract import HeadError, require_same_features
from heads.dense.registry import load_dense_head
from heads.dense.segmenter import load_segmenter
from sail_cli import main
from sail_encoder.backbones.batch import Encoded
from sail_encoder.backbones.pooling import patch_states
from sail_encoder.backbones.registry import resolve_features
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
    prepared = [backbone.prepare(noise(*size, 2), Resize.parse("native")) for size in ((96, 64), (32, 32), (64, 64))]
    for image, logits in zip(prepared, segmenter.logits(backbone.collate(prepared)), strict=True):
        torch.testing.assert_close(logits, segmenter.logits(backbone.collate([image]))[0])
    if mode == "cached":
        [cache] = (tmp_path / "cache").iterdir()
        assert FeatureFolder(cache).read(FeatureFolder(cache).entries[0]).shape[-1] == 128
    assert main(["segment", "eval", data, "--head", str(tmp_path)]) == 0


def test_a_model_without_one_is_refused(data, tmp_path, capsys):
    command = ["segment", "train", data, "--out", str(tmp_path), "--model", "raw/14", "--class-token", *FAST]
    assert main(command) == 2
    assert "--class-token reads a class token, but raw/14 has none; leave it out" in capsys.readouterr().err


def test_each_layer_has_its_own_token_and_each_image_its_own():
    patches = {layer: torch.full((5, 2), float(layer)) for layer in (0, 3)}
    tokens = {layer: torch.tensor([[10.0], [20.0]]) + layer for layer in (0, 3)}
    for layer, states in zip((3, 0), patch_states(Encoded(patches, tokens), (3, 0), (2, 3), True), strict=True):
        assert states.tolist() == [[layer, layer, 10 + layer]] * 2 + [[layer, layer, 20 + layer]] * 3


def test_features_with_it_are_others_and_take_more_room(data, capsys):
    spec, source = resolve_features("timm/test_vit", "-1", "64", None, pretrained=False, class_token=True)
    with pytest.raises(HeadError, match="class_token was True, now False; fit it again"):
        require_same_features(source, replace(source, class_token=False))
    samples = [Sample(path.stem, path, path) for path in sorted(Path(data, "images", "train").iterdir())]
    check_budget(samples, spec, source, 1)
    assert "the class token beside each patch" in describe_features(source)
    assert "about 16 patches of 128 channels in 1 layers each, take 16.4 kB" in capsys.readouterr().err
