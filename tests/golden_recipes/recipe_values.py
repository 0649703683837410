"""Recorded values of published recipes, the arrays that they were recorded with, and our own recipes of those names."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml

from evals.probing import build_probe
from evals.segmentation.option_checks import read_windows
from evals.segmentation.options import TrainOptions
from heads.dense.inference import Inference
from heads.dense.upernet import UperNetHead
from sail_encoder.images.resizing import Resize

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/golden/recipes"


def recorded(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


def draw(spec):
    """The array that a recorded value was computed from."""
    rng = np.random.RandomState(spec["seed"])
    if spec["draw"] == "standard_normal":
        values = rng.standard_normal(spec["shape"]).astype(np.float32) * spec.get("scale", 1.0)
        return (values + spec.get("shift", 0.0)).astype(np.float32)
    values = rng.randint(spec["low"], spec["high"], spec["shape"])
    for image, first, last in spec.get("ignored_rows", []):
        values[image, first:last] = spec["ignore"]
    return values


def tensor(spec):
    return torch.from_numpy(draw(spec))


def blobs(inputs, part):
    """Points around the centers of their classes, and the classes."""
    labels, points = draw(inputs[part]["labels"]), draw(inputs[part]["points"])
    return (draw(inputs["centers"])[labels] + points if "centers" in inputs else points), labels


def segmentation_request(name, **changes):
    """What `sail segment train` is asked for by the recipe of a name."""
    settings = yaml.safe_load((ROOT / f"configs/segmentation/{name}.yaml").read_text())
    return TrainOptions(**{"data": "data", "out": "out", **settings, **changes})


def inference(request, patch_size):
    windows = read_windows(request.window, request.stride, patch_size)
    return Inference(Resize.parse(request.resize), *windows, fit=request.fit)


def probe_settings(name):
    return yaml.safe_load((ROOT / f"configs/probe/{name}.yaml").read_text())


def recipe_probe(name, kind, **changes):
    """The probe that `sail probe` builds for the recipe of a name."""
    return build_probe(kind, {**probe_settings(name)["probes"][kind], **changes}, "classification", 0, "cpu")


def internvl_upernet(head):
    """InternVL's UperNet with the recorded weights, as narrow as these, and without dropout."""
    inputs = head["inputs"]
    options = {
        **segmentation_request("ade20k_upernet_internvl").head_options,
        "channels": inputs["channels"],
        "auxiliary_channels": inputs["auxiliary_channels"],
        "dropout": 0.0,
    }
    made = UperNetHead([inputs["width"]] * 4, inputs["classes"], **options)
    weights = {name: tensor(spec) for name, spec in inputs["weights"].items()}
    missing = made.load_state_dict(weights, strict=False).missing_keys
    assert all("running" in name or "tracked" in name for name in missing)
    return made
