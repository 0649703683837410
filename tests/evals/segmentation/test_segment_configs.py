"""Every published protocol in configs/segmentation runs as it is written, but for the size of model and data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from drawn_data import draw, save_pair
from helpers import small_config
from PIL import Image

from evals.segmentation import layouts
from evals.segmentation.option_checks import whole_patches
from sail_cli import main
from sail_encoder.models.sail.modeling_sail import SailForCausalLM

CONFIGS = sorted(Path("configs/segmentation").glob("*.yaml"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Four layers, as `even4` and `last4` need."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    SailForCausalLM(small_config(num_hidden_layers=4)).save_pretrained(folder)
    return str(folder)


def write(root, layout):
    """Two small images for training and one for validation, in an official layout."""
    rng = np.random.default_rng(0)
    for split, name in (("train", "a"), ("train", "b"), ("val", "a")):
        image, labels = draw(60, 80, rng)
        full = {"train": "training", "val": "validation"}[split]
        city = f"{split}/ulm/{name}"
        places = {
            "ade20k": (f"images/{full}/{name}.jpg", f"annotations/{full}/{name}.png"),
            "cityscapes": (f"leftImg8bit/{city}_leftImg8bit.png", f"gtFine/{city}_gtFine_labelIds.png"),
            "voc2012aug": (f"JPEGImages/{split}_{name}.jpg", f"SegmentationClass/{split}_{name}.png"),
        }[layout]
        save_pair(image, labels + (7 if layout == "cityscapes" else 0), *(root / place for place in places))
    if layout == "cityscapes":
        for path in (root / "gtFine").rglob("*.png"):
            ids = np.asarray(Image.open(path))
            Image.fromarray(np.where(ids > 8, 11, ids).astype(np.uint8)).save(path)
    if layout == "voc2012aug":
        (root / "SegmentationClassAug").mkdir()
        lists = root / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        for listing, names in {"train": "train_a", "aug": "train_b", "val": "val_a"}.items():
            (lists / f"{listing}.txt").write_text(names)
        (root / "SegmentationClass/train_b.png").rename(root / "SegmentationClassAug/train_b.png")
    return str(root)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_and_is_scored(path, checkpoint, tmp_path, monkeypatch):
    settings = yaml.safe_load(path.read_text())
    monkeypatch.setattr(layouts, "SPLITS", {"training": range(2), "validation": range(9, 11)})
    data = [] if "data" in settings else [write(tmp_path / "data", settings["layout"])]
    whole_patches("crop", settings["crop"], 14)
    smaller = ["--model", checkpoint, "--steps", "1", "--warmup", "0", "--batch_size", "2", "--crop", "56"]
    smaller += ["--overlays", "0"]
    if settings["head"] != "linear":
        options = {"upernet": {"channels": 8, "auxiliary_channels": 8}, "knn": {"bank": 50}}[settings["head"]]
        smaller += ["--head_options", json.dumps({**settings["head_options"], **options})]
    out = tmp_path / "out"
    assert main(["segment", "train", *data, "--config", str(path), "--out", str(out), *smaller]) == 0
    protocol = json.loads((out / "results.json").read_text())["protocol"]
    assert protocol["head"] == settings["head"]
    assert len(protocol["layers"]) == (4 if settings["layers"] in ("even4", "last4", "all") else 1)
    assert protocol["resize"] == settings["resize"]
    assert protocol["fit"] == settings.get("fit", "resize")
    if "window" in settings:
        assert tuple(protocol["window"]) == whole_patches("window", settings["window"], 14)
        assert protocol["stride"][0] == settings.get("stride", protocol["window"][0] * 2 // 3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_its_source_and_its_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source: ") for line in comments)
    assert any(f"--config {path.as_posix()}" in line for line in comments)
