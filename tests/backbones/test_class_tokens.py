"""Class tokens from the command line: extracted, probed and swept; refused where there are none."""

import numpy as np
import pytest
import tiny_models
import torch
from helpers import relative_error, results_in, save_images

from sail_cli import main
from sail_encoder import load_backbone
from sail_encoder.store.reading import FeatureFolder

VIT = ["--model", "timm/test_vit", "--random-weights"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photographs"), 5)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Folders of two classes, 20 images each."""
    folder = tmp_path_factory.mktemp("classes")
    for seed, name in enumerate(("one", "other")):
        save_images(folder / name, 20, seed)
    return folder


@pytest.mark.parametrize("pool", ["mean", "max", "gem", "cls", "cls_mean"])
@pytest.mark.parametrize("layers", ["-1", "1,4"])
def test_pooled_features_are_those_of_encode(photographs, tmp_path, pool, layers):
    out = tmp_path / "out"
    command = ["extract", str(photographs), "--out", str(out), *VIT, "--pool", pool, "--layers", layers]
    assert main([*command, "--resize", "native", "--store-dtype", "float32", "--token_budget", "40"]) == 0
    folder, backbone = FeatureFolder(out), load_backbone("timm/test_vit", pretrained=False)
    paths = [photographs / entry.path for entry in folder.entries]
    for layer in folder.layers:
        expected = [one.pool(pool) for one in backbone.encode(paths, layers=layer, resize="native")]
        assert relative_error(torch.tensor(folder.matrix(layer)), torch.stack(expected)) < 1e-5
    assert folder.matrix().shape == (5, 128 if pool == "cls_mean" else 64)


def test_class_tokens_of_a_transformers_model(photographs, tmp_path):
    place = tiny_models.save(tiny_models.build("dinov2_with_registers"), tmp_path / "model")
    out = tmp_path / "out"
    assert main(["extract", str(photographs), "--out", str(out), "--model", place, "--pool", "cls"]) == 0
    folder = FeatureFolder(out)
    expected = [one.class_tokens[2] for one in load_backbone(place).encode([photographs / "000.png"])]
    assert relative_error(torch.tensor(folder.matrix()[:1]), torch.stack(expected)) < 1e-3


@pytest.mark.parametrize(
    ("command", "model"),
    [("extract", "sail-tiny"), ("extract", "timm/resnet18"), ("sweep", "sail-tiny"), ("probe", "raw/14")],
)
def test_there_may_be_no_class_token(command, model, photographs, tmp_path, capsys):
    data = str(photographs) if command == "extract" else "digits"
    assert main([command, data, "--out", str(tmp_path / "out"), "--model", model, "--pool", "cls"]) == 2
    assert f"--pool cls reads a class token, but {model} has none; use mean, max or gem" in capsys.readouterr().err


def test_probes_of_class_tokens_beside_probes_of_grids(classes, tmp_path):
    command = ["probe", str(classes), "--out", str(tmp_path), *VIT, "--resize", "32", "--plots", "false"]
    settings = "{ridge: {}, attentive: {epochs: 1, learning_rates: [0.01]}}"
    assert main([*command, "--pool", "cls_mean", "--baselines", "false", "--probes", settings]) == 0
    assert [result["probe"] for result in results_in(tmp_path)] == ["ridge", "attentive"]
    folders = [FeatureFolder(path) for path in (tmp_path / "features").iterdir()]
    by_pool = {folder.spec.pool: folder for folder in folders}
    assert by_pool.keys() == {"none", "cls_mean"}
    assert by_pool["cls_mean"].matrix().shape[1] == 128


def test_layers_are_swept_by_their_class_token(classes, tmp_path):
    command = ["sweep", str(classes), *VIT, "--resize", "32", "--plots", "false", "--probes", "ridge"]
    for pool in ("cls", "mean"):
        assert main([*command, "--out", str(tmp_path / pool), "--pool", pool]) == 0
    tables = [(tmp_path / pool / "sweep.csv").read_text() for pool in ("cls", "mean")]
    assert tables[0] != tables[1]


def test_grids_that_are_there_hold_no_class_tokens(photographs, tmp_path, capsys):
    assert main(["extract", str(photographs), "--out", str(tmp_path / "grids"), *VIT, "--resize", "32"]) == 0
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "\n".join(f"{index:03d}.png,{index % 2}" for index in range(5)))
    command = ["probe", str(tmp_path / "grids"), "--out", str(tmp_path / "out"), "--labels", str(labels)]
    assert main([*command, "--pool", "cls"]) == 2
    assert "holds grids, without class tokens; extract with --pool cls" in capsys.readouterr().err
    grid = FeatureFolder(tmp_path / "grids")
    assert np.isfinite(grid.matrix(pool="gem")).all()
