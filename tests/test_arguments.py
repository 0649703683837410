"""What is typed behind a command, and what configuration files hold, against the parameters of a function."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from evals.commands.probe import probe
from sail_encoder.commands.arguments import SHIPPED, ArgumentReader, find_config, parameters_of, suggest
from sail_encoder.commands.extract import extract
from sail_encoder.io.errors import UserError


def command(
    source: list[str],
    out: str,
    layers: str = "-1",
    norm: bool = True,
    check: bool | None = None,
    dry_run: bool = False,
    max_tokens: int | None = None,
    budget: int | Literal["auto"] = "auto",
    rate: float = 0.1,
    jitter: tuple[float, float] | None = None,
    probes: str | dict[str, dict[str, Any] | None] | None = None,
    at: list[str] | None = None,
) -> int:
    raise AssertionError


def question(image: str | None = None, prompt: str | None = None, verbose: bool = False) -> int:
    raise AssertionError


def read(*arguments):
    values = ArgumentReader(command, ("source",)).read(["photos", "--out", "o", *arguments])
    assert values.pop("source") == ["photos"]
    assert values.pop("out") == "o"
    return values


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--norm"], {"norm": True}),
        (["--norm", "false"], {"norm": False}),
        (["--norm=false", "--dry-run"], {"norm": False, "dry_run": True}),
        (["--no-norm", "--no_dry_run"], {"norm": False, "dry_run": False}),
        (["--no-check"], {"check": False}),
        (["--check", "null"], {"check": None}),
        (["--max-tokens", "7"], {"max_tokens": 7}),
        (["--max_tokens=7", "--max-tokens=8"], {"max_tokens": 8}),
        (["--layers", "-1"], {"layers": "-1"}),
        (["--layers=-4,-1"], {"layers": "-4,-1"}),
        (["--budget", "auto", "--rate", "1e-3"], {"budget": "auto", "rate": 0.001}),
        (["--jitter", "[1,2]"], {"jitter": (1.0, 2.0)}),
        (["--at", "3,5"], {"at": ["3,5"]}),
        (["--at", "3,5", "--at=7,-1 2,2"], {"at": ["3,5", "7,-1 2,2"]}),
        (["--at", "[a, b]", "--at", "c"], {"at": ["a", "b", "c"]}),
        (["--at", "null"], {"at": None}),
        (["--probes", "knn,linear"], {"probes": "knn,linear"}),
        (["--probes", "{knn: {k: [20], t: 1e-3}}"], {"probes": {"knn": {"k": [20], "t": 0.001}}}),
    ],
)
def test_options(arguments, values):
    assert read(*arguments) == values


def test_spellings_of_0_1_0(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("layer: 0,2\n")
    reader = ArgumentReader(command, ("source",), {"layer": "layers", "image": "source"})
    arguments = ["--image", "a", "--out", "o", "--config", str(tmp_path / "a.yaml")]
    assert reader.read(arguments) == {"source": ["a"], "out": "o", "layers": "0,2"}
    assert capsys.readouterr().err.splitlines() == [
        "--image is now --source; the old spelling works in this release only",
        "--layer is now --layers; the old spelling works in this release only",
    ]
    assert reader.read([*arguments, "--layer", "5"])["layers"] == "5"


def test_words_and_options_in_any_order():
    reader = ArgumentReader(command, ("source",))
    assert reader.read(["--dry-run", "a", "--out", "o", "b"]) == {"source": ["a", "b"], "out": "o", "dry_run": True}
    assert ArgumentReader(question, ("image", "prompt")).read(["--verbose", "a.jpg", "-1?"]) == {
        "image": "a.jpg",
        "prompt": "-1?",
        "verbose": True,
    }
    assert ArgumentReader(question, ("image", "prompt")).read(["--image", "a", "--", "--why"]) == {
        "image": "a",
        "prompt": "--why",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", "8"], "no option --batch_size"),
        (["--layer", "1"], "no option --layer, did you mean 'layers'?"),
        (["--max-token", "1"], "no option --max-token, did you mean 'max_tokens'?"),
        (["--dry"], "no option --dry, did you mean 'dry_run'?"),
        (["-o", "x"], "no option -o, did you mean 'out'?"),
        (["-out", "x"], "no option -out, did you mean 'out'?"),
        (["--no-layers"], "no option --no-layers, did you mean 'layers'?"),
        (["--no-norm=true"], "--no-norm takes no value"),
        (["--norm", "si"], "--norm cannot be si; allowed is true or false"),
        (["--layers", "--norm"], "--layers needs a value"),
        (["--layers"], "--layers needs a value"),
        (["--config"], "--config needs a value"),
        (["--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["--max_tokens", "many"], "--max_tokens cannot be many; allowed is a whole number or null"),
        (["--budget", "1.5"], "--budget cannot be 1.5; allowed is a whole number or auto"),
        (["--jitter", "1"], "--jitter cannot be 1; allowed is [a number, a number] or null"),
        (["--rate", "9" * 999 + "x"], f"--rate cannot be {'9' * 80}...; allowed is a number"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError) as refused:
        read(*arguments)
    assert str(refused.value) == message


def test_everything_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"^source and --out are missing$"):
        ArgumentReader(command, ("source",)).read([])
    with pytest.raises(UserError, match=r"^'c' is one argument too many"):
        ArgumentReader(question, ("image", "prompt")).read(["a", "b", "c"])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("layers: -1", {"layers": "-1"}),
        ("layers: [0, 11]", {"layers": "0,11"}),
        ("layers: '0,11'", {"layers": "0,11"}),
        ("max-tokens: 7", {"max_tokens": 7}),
        ("max_tokens: null", {"max_tokens": None}),
        ("norm: no", {"norm": False}),
        ("rate: 1e-3", {"rate": 0.001}),
        ("jitter: [0.5, 2]", {"jitter": (0.5, 2.0)}),
        ("probes: {knn: {k: [20], t: 1e-3}, linear: }", {"probes": {"knn": {"k": [20], "t": 0.001}, "linear": None}}),
        ("", {}),
    ],
)
def test_configurations(line, values, tmp_path):
    (tmp_path / "run.yaml").write_text(line)
    assert read("--config", str(tmp_path / "run.yaml")) == values


def test_numbers_are_names_of_folders_too(tmp_path):
    (tmp_path / "run.yaml").write_text("source: [2024, 007]\nout: 1_000\nlayers: 3\n")
    given = ["--layers", "4", "--config", str(tmp_path / "run.yaml")]
    values = ArgumentReader(command, ("source",)).read(given)
    assert values == {"source": ["2024", "007"], "out": "1_000", "layers": "4"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer: 1", "no option --layer, did you mean 'layers'?"),
        ("no-norm: true", "no option --no-norm, did you mean 'norm'?"),
        ("out: null", "--out cannot be null; allowed is text"),
        ("out: {a: b}", "--out cannot be {'a': 'b'}; allowed is text"),
        ("max_tokens: 1.5", "--max_tokens cannot be 1.5; allowed is a whole number or null"),
        ("- out", "there are no options in it"),
        ("out: [", "this is not YAML"),
        ("\x00", "this is not YAML"),
        ("out: &name o\nlayers: *name", "aliases (*name) are not read"),
    ],
)
def test_mistakes_in_configurations_name_the_file(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read("--config", str(path))
    assert str(refused.value).startswith(f"{path}: {message}")


def test_suggestions_are_near():
    options = ArgumentReader(extract).parameters
    assert suggest("--batch_size", options) == ""
    assert suggest("--token-budgets", options) == ", did you mean 'token_budget'?"
    assert suggest("--token", options) == ", did you mean 'token_budget'?"
    assert suggest("--device", options) == ", did you mean 'devices'?"


def test_values_are_those_of_a_structure_as_json(tmp_path):
    probes = {"knn": {"k": [10, 20], "temperature": 0.07}, "ridge": None}
    assert read("--probes", json.dumps(probes)) == {"probes": probes}
    (tmp_path / "run.yaml").write_text(json.dumps({"probes": probes}))
    assert read("--config", str(tmp_path / "run.yaml")) == {"probes": probes}


def test_shipped_configurations_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in (("digits", "probe/digits"), ("probe/scenes", "probe/scenes"), ("scenes", "probe/scenes")):
        assert find_config(name, parameters_of(probe)) == SHIPPED / f"{file}.yaml"
    (tmp_path / "digits").write_text("out: mine")
    assert find_config("digits", parameters_of(probe)) == Path("digits")
    with pytest.raises(UserError, match=r"no configuration file digts, did you mean 'digits'.* shipped are compare/"):
        find_config("digts", parameters_of(probe))
