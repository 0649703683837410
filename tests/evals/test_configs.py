"""Every field of every configuration is read: changed, something that is built is changed too, or an error says why."""

import copy
import inspect
from pathlib import Path

import pytest
import yaml

from evals.datasets.made import MADE
from evals.probe import _settings, probe
from evals.probing import build_probe, parse_probes
from sail_cli import COMMANDS, _build_parser, main
from sail_encoder.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "probe"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse(path):
    """The arguments of `sail probe` that a configuration gives."""
    values = _build_parser("probe", probe, COMMANDS["probe"]).parse_args([f"--config={path}"]).as_dict()
    values.pop("config")
    return values


def build(arguments):
    """All that a run is made of, in a form that can be compared."""
    built = [
        build_probe(name, settings, "classification", 0, "cpu").settings()
        for name, settings in parse_probes(arguments["probes"]).items()
    ]
    rest = {name: value for name, value in arguments.items() if name != "probes"}
    return built, list(parse_probes(arguments["probes"])), _settings(arguments), rest


def test_there_is_one_for_each_protocol():
    assert {path.stem for path in CONFIGS} == {
        "digits",
        "scenes",
        "imagenet1k-aim-attentive",
        "imagenet1k-dinov2-knn-logistic",
        "imagenet1k-dinov3-linear",
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
    assert arguments["data"] in {*MADE, "imagenet1k"}
    for name, settings in parse_probes(arguments["probes"]).items():
        built = build_probe(name, settings, "classification", 0, "cpu")
        assert {key: built.settings()[key] for key in settings} == settings


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if value >= 1 else value / 2 or 0.1
    if isinstance(value, list):
        return value[:-1] if len(value) > 1 else [value[0] / 2]
    return {"mean": "concat", "test": "validation", "sgd": "adamw", "adamw": "sgd"}.get(value, f"{value}1")


def fields():
    for path in CONFIGS:
        content = read(path)
        for name in content:
            if name != "probes":
                yield pytest.param(path, (name,), id=f"{path.stem}-{name}")
        for name, settings in content["probes"].items():
            for setting in settings:
                yield pytest.param(path, ("probes", name, setting), id=f"{path.stem}-{name}-{setting}")


@pytest.mark.parametrize(("path", "keys"), fields())
def test_every_field_is_consumed(path, keys, tmp_path):
    content = read(path)
    place = content
    for key in keys[:-1]:
        place = place[key]
    before = build(parse(path))
    place[keys[-1]] = changed(place[keys[-1]])
    flipped = tmp_path / "flipped.yaml"
    flipped.write_text(yaml.safe_dump(content))
    assert build(parse(flipped)) != before
    place[f"{keys[-1]}x"] = place.pop(keys[-1])
    flipped.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="did you mean"):
        build(parse(flipped))


def test_an_unknown_field_is_an_error_of_the_command(tmp_path, capsys):
    content = copy.deepcopy(read(FOLDER / "digits.yaml"))
    content["seed"] = 3
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(content))
    assert main(["probe", "--config", str(tmp_path / "typo.yaml")]) == 2
    assert "no option --seed, did you mean 'seeds'?" in capsys.readouterr().err
