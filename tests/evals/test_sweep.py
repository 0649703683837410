"""`sail sweep`: all layers from one pass, the best one named."""

import json

import numpy as np
import pytest
import torch

from evals.datasets.loading import load_dataset
from evals.layers import pool_layers
from evals.results import LayerResult, best_layers
from sail_cli import main
from sail_encoder.backbones.spec import FeatureSpec


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_layers_are_those_of_encode(pets, small_backbone, norm, pool, monkeypatch):
    images = load_dataset(str(pets)).images.images[:9]
    monkeypatch.setattr(small_backbone, "default_token_budget", lambda: 20, raising=False)
    layers = pool_layers(
        small_backbone, images, FeatureSpec("small", (0,), norm, pool, size=small_backbone.spec.resize)
    )
    assert layers.keys == [image.key for image in images]
    features = small_backbone.encode([image.path for image in images], layers="all", norm=norm)
    raw = small_backbone.encode([image.path for image in images], layers="all", norm=False)
    for layer in range(small_backbone.num_layers):
        expected = torch.stack([one.pool(pool, layer) for one in features])
        np.testing.assert_allclose(layers.vectors[layer], expected, rtol=1e-4, atol=1e-5)
        lengths = torch.cat([one.layers[layer].flatten(0, 1).norm(dim=1) for one in raw])
        assert layers.mean_norms[layer] == pytest.approx(float(lengths.mean()), rel=1e-5)
        assert layers.max_norms[layer] == pytest.approx(float(lengths.max()), rel=1e-5)


def test_sweep(pets, small_checkpoint, tmp_path, capsys):
    assert main(["sweep", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "best layer on the validation set (test result): ridge" in out
    report = json.loads((tmp_path / "sweep.json").read_text())
    assert {(one["layer"], one["probe"]) for one in report["results"]} == {
        (layer, probe) for layer in range(3) for probe in ("ridge", "logistic", "knn")
    }
    assert max(one["value"] for one in report["results"]) > 0.9
    for probe, layer in report["best_layer"].items():
        mine = [one for one in report["results"] if one["probe"] == probe]
        assert mine[layer]["validation"] == max(one["validation"] for one in mine)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"accuracy.png", "norms.png"}
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 10


def test_the_best_layer_is_chosen_on_validation():
    values = [(0, 0.5, 0.9), (1, 0.8, 0.1), (2, 0.8, 0.7)]
    results = [LayerResult(layer, "ridge", "top1", quality, test, 1.0) for layer, quality, test in values]
    assert best_layers(results)["ridge"].layer == 1


def test_probes_of_grids_have_no_place(pets, small_checkpoint, tmp_path, capsys):
    command = ["sweep", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint)]
    assert main([*command, "--probes", "attentive"]) == 2
    assert "it has no probes of grids; use ridge" in capsys.readouterr().err
