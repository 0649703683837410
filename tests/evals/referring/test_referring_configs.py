"""Every file in configs/referring runs as it is written, but for the size of model and data."""

import json
from pathlib import Path

import pytest
import yaml

from evals.referring import data
from sail_cli import main

CONFIGS = sorted(Path("configs/referring").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_and_is_scored(path, sail, refcoco, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SCENE_SPLITS", {"train": range(3), "val": range(3, 5)})
    settings = yaml.safe_load(path.read_text())
    source = [] if "data" in settings else [str(refcoco[0])]
    smaller = ["--model", sail, "--steps", "2", "--warmup", "0", "--batch_size", "2"]
    command = ["segment", "train", *source, "--config", f"referring/{path.stem}", "--out", str(tmp_path / "run")]
    assert main([*command, *smaller]) == 0
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    assert 0 <= scores["val"]["gIoU"] <= 1
    run = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert run["learning_rate"] == settings["learning_rate"]
    assert run["mask_channels"] == settings["head_options"]["mask_channels"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    of_model = {name: value for name, value in settings["head_options"].items() if name in config}
    assert {"mask_channels", "train_num_points"} <= of_model.keys()
    assert {name: config[name] for name in of_model} == of_model
