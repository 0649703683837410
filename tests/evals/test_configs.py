"""Every field of every configuration is read: changed, what does the work gets something else, or an error says why."""

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from evals.commands.probe import probe
from evals.datasets.labelled import LabelledImages
from evals.datasets.made import MADE
from evals.options import parse_probes
from evals.probing import build_probe, check_stepwise, parts_for
from heads.logistic import LogisticSolver
from heads.targets import TargetSpace
from heads.trained import TrainedProbe
from sail_cli import main
from sail_encoder.backbones.spec import BackboneSpec
from sail_encoder.commands.arguments import ArgumentReader
from sail_encoder.images.resizing import Resize
from sail_encoder.images.sources import ImageList
from sail_encoder.io.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "probe"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
WIDTH = 64


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse(path):
    """The arguments of `sail probe` that a configuration gives; where ImageNet-1k is, the user says."""
    data = [] if "data" in read(path) else ["--data=IMAGENET"]
    defaults = {name: parameter.default for name, parameter in inspect.signature(probe).parameters.items()}
    return {**defaults, **ArgumentReader(probe).read([f"--config={path}", *data])}


class WorkBeginsError(Exception):
    """The command has come this far."""


def made_up(name, *options):
    """Six hundred samples of six classes, under the name of any data set."""
    if name not in {*MADE, "IMAGENET"}:
        raise UserError(f"no data set '{name}'")
    keys, targets = [f"{row:03d}" for row in range(600)], np.arange(600) % 6
    return LabelledImages(name, ImageList(name, []), keys, targets, [""] * 600)


def backbone(name):
    """Sizes as of SAIL-7B, under any name; raw pixels are patches of 16."""
    side = 16 if name.startswith("raw/") else 14
    sizes = {"patch_size": side, "embed_dim": WIDTH, "num_layers": 32, "attention_dim": WIDTH, "extra_tokens": 2}
    return BackboneSpec(name=name, family="sail", block_parameters=1, other_parameters=1, resize=Resize(), **sizes)


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """From the arguments of `sail probe` to what extraction, training and probes get of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evals.commands.probe.load_dataset", made_up)
    monkeypatch.setattr("sail_encoder.backbones.registry.describe", backbone)
    seen = []

    def extract(dataset, wanted, device, cache, probes):
        seen.append((dataset.name, cache, device, wanted))
        return [SimpleNamespace(spec=wanted)]

    def fit(run, probes, features, splits):
        seen.append((run.out, samples(splits, run.choose_on), [learned(name, probes[name]) for name in probes]))
        raise WorkBeginsError

    def train(out, dataset, features, device, crops, choose_on, probes, splits):
        seen.append((dataset.name, out, features, device, crops, samples(splits, choose_on)))
        seen.append([learned(name, probes[name]) for name in probes])
        raise WorkBeginsError

    def learned(name, settings):
        one = build_probe(name, settings, "classification", 0, "cpu")
        return trained(one) if isinstance(one, TrainedProbe) else fitted(one, monkeypatch)

    for name, stand_in in (("_extract", extract), ("_run_probes", fit), ("_train_online", train)):
        monkeypatch.setattr(f"evals.commands.probe.{name}", stand_in)

    def run(arguments):
        seen.clear()
        try:
            probe(**arguments)
        except WorkBeginsError:
            return repr(seen)
        except UserError as error:
            return str(error)

    return run


def samples(splits, choose_on):
    """How many are fitted on, chosen on and reported, and whether the latter are the same."""
    parts = parts_for(splits[0], choose_on)
    return [len(part) for part in parts], parts[1] is parts[2]


def trained(one):
    """The recipe of a probe, and what its untrained heads make of made-up features, with their loss."""
    torch.manual_seed(0)
    bank, images = one.build(WIDTH, 3, len(one.recipe.learning_rates)), torch.randn(12, WIDTH)
    batch = (images, torch.full((3,), 4)) if one.takes == "grids" else images
    one.targets_ = TargetSpace.of(np.arange(3), "classification")
    scores = bank(batch)
    targets = torch.arange(scores.shape[1]) % 3
    return one.recipe, scores.flatten().tolist(), one.loss(bank, (batch, targets)).item()


def fitted(one, monkeypatch):
    """The values that a probe tries, what its solver is asked for, and what it makes of made-up features."""
    rng, asked, solve = np.random.default_rng(0), [], LogisticSolver.solve
    monkeypatch.setattr(LogisticSolver, "solve", lambda self, *wanted: asked.append(wanted) or solve(self, *wanted))
    (train, val, test), targets = rng.normal(size=(3, 60, 4)), np.arange(60) % 3
    scores = one.fit(train, targets, (val, targets)).scores(test)
    monkeypatch.setattr(LogisticSolver, "solve", solve)
    return one.candidates(), asked, scores.tolist()


def test_there_is_one_for_each_protocol():
    assert {path.stem for path in CONFIGS} == {
        "digits",
        "scenes",
        "imagenet1k-aim-attentive",
        "imagenet1k-dinov2-knn-logistic",
        "imagenet1k-dinov3-linear",
        "imagenet1k-efficient-probing",
        "imagenet1k-internvl-linear",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loaded_and_built(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any("arXiv" in line or "No published protocol" in line for line in lines if line.startswith("#"))
    assert f"configs/probe/{path.name}" in path.read_text(encoding="utf-8")
    arguments = parse(path)
    assert set(arguments) == set(inspect.signature(probe).parameters)
    assert arguments["data"] == "IMAGENET" if path.stem.startswith("imagenet1k") else arguments["data"] in MADE
    for name, settings in parse_probes(arguments["probes"]).items():
        one = build_probe(name, settings, "classification", 0, "cpu")
        one.check()
        if arguments["online"]:
            check_stepwise(one)


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if value >= 1 else value / 2 or 0.1
    if isinstance(value, list):
        return value[:-1] if len(value) > 1 else [value[0] / 2]
    others = {"mean": "concat", "test": "validation", "sgd": "adamw", "adamw": "sgd", "224": "448"}
    return others.get(value, value[:-1] if "," in value else f"{value}1")


def fields():
    """Every field of every configuration."""
    for path in CONFIGS:
        content = read(path)
        for name in content:
            if name != "probes":
                yield pytest.param(path, (name,), id=f"{path.stem}-{name}")
        for name, settings in content["probes"].items():
            for setting in settings:
                yield pytest.param(path, ("probes", name, setting), id=f"{path.stem}-{name}-{setting}")


@pytest.mark.parametrize(("path", "keys"), list(fields()))
def test_every_field_is_consumed(path, keys, reached, tmp_path):
    content = read(path)
    place = content
    for key in keys[:-1]:
        place = place[key]
    before = reached(parse(path))
    assert before.startswith("[")
    place[keys[-1]] = changed(place[keys[-1]])
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    assert reached(parse(other)) != before
    place[f"{keys[-1]}x"] = place.pop(keys[-1])
    other.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="did you mean"):
        check_names(parse(other))


def check_names(arguments):
    for name, settings in parse_probes(arguments["probes"]).items():
        build_probe(name, settings, "classification", 0, "cpu")


def test_an_unknown_field_is_an_error_of_the_command(tmp_path, capsys):
    content = copy.deepcopy(read(FOLDER / "digits.yaml"))
    content["seed"] = 3
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(content))
    assert main(["probe", "--config", str(tmp_path / "typo.yaml")]) == 2
    assert "no option --seed, did you mean 'seeds'?" in capsys.readouterr().err
