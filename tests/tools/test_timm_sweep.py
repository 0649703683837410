import json
from types import SimpleNamespace

import pytest
import torch

from sail_encoder import VisionBackbone
from tools import timm_sweep

NAMES = ["levit_128s", "resnet10t", "test_vit"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "timm.jsonl"
    return out, timm_sweep.sweep(out, NAMES[1:])


def test_each_architecture_is_described_and_run_at_its_smallest_size(swept):
    _, (resnet, vit) = swept
    assert (vit.status, vit.patches, vit.channels, vit.layers, vit.size) == ("works", (16,), (64,), 6, "16x16")
    assert (resnet.status, resnet.patches, resnet.size) == ("works", (2, 4, 8, 16, 32), "32x32")
    assert resnet.parameters > vit.parameters > 0


def test_it_goes_on_where_it_was(swept, monkeypatch):
    out, trials = swept
    with out.open("a") as file:
        file.write('{"name": "cut o')
    ran = []

    def run_apart(name, seconds):
        ran.append(name)
        return timm_sweep.Trial(name, "refused", "it cannot | it will not")

    monkeypatch.setattr(timm_sweep, "run_apart", run_apart)
    again = timm_sweep.sweep(out, NAMES)
    assert ran == ["levit_128s"]
    assert [trial.name for trial in again] == NAMES
    assert [trial.status for trial in again[1:]] == [trial.status for trial in trials]
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == [*NAMES[1:], "levit_128s"]
    modules = {"levit_128s": "levit", "resnet10t": "resnet", "test_vit": "vision_transformer"}
    report = list(timm_sweep.write_report(again, modules))
    assert report[:3] == ["| module of timm | works | refused |", "|---|---:|---:|", "| all | 2 | 1 |"]
    assert "| levit |  | 1 |" in report
    assert report[-1] == "| it cannot \\| it will not | levit_128s |"
    timm_sweep.write_rows(again, rows := out.with_name("timm.csv"))
    lines = rows.read_text().splitlines()
    assert lines[0] == "name,status,reason,parameters,layers,patches,channels,size"
    assert lines[2].startswith("resnet10t,works,,")
    assert ",2 4 8 16 32,64 64 128 256 512,32x32" in lines[2]


def test_one_that_takes_too_long_is_ended():
    assert timm_sweep.run_apart("test_vit", 0.01).status == "timeout"


def test_what_comes_of_one(monkeypatch):
    trial = timm_sweep.try_architecture("levit_128s")
    assert trial.status == "refused"
    assert "at 192x192 it fails" in trial.reason
    assert timm_sweep.try_architecture("no_such_model").status == "refused"
    monkeypatch.setattr(timm_sweep, "PARAMETERS", 1000)
    assert timm_sweep.try_architecture("test_vit").status == "described"


def test_an_error_of_its_own_fails_the_sweep(tmp_path, monkeypatch, capsys):
    def broken(name):
        raise KeyError("depth")

    monkeypatch.setattr(timm_sweep, "run_smallest", broken)
    trial = timm_sweep.try_architecture("test_vit")
    assert (trial.status, trial.reason) == ("error", "KeyError: 'depth'")
    monkeypatch.setattr(timm_sweep, "run_apart", lambda name, seconds: trial)
    assert timm_sweep.main(["--out", str(tmp_path / "timm.jsonl"), "--match", "test_vit"]) == 1
    assert "KeyError: 'depth' |" in capsys.readouterr().out


def test_a_killed_one_fails_the_sweep_and_features_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    killed = timm_sweep.Trial("test_vit", "killed", "exit status -9")
    monkeypatch.setattr(timm_sweep, "run_apart", lambda name, seconds: killed)
    assert timm_sweep.main(["--out", str(tmp_path / "timm.jsonl"), "--match", "test_vit"]) == 1
    features = SimpleNamespace(grid=torch.full((1, 1, 64), torch.nan), resized_size=(16, 16))
    monkeypatch.setattr(VisionBackbone, "encode", lambda *_, **__: [features])
    trial = timm_sweep.try_architecture("test_vit")
    assert (trial.status, trial.reason) == ("refused", "features of (16, 16) are not finite")


def test_reasons_that_differ_by_the_name_alone_are_one_row():
    trials = [timm_sweep.Trial(name, "refused", f"{name} takes no images") for name in ("a1", "b1")]
    assert list(timm_sweep.write_report(trials, {"a1": "m", "b1": "m"}))[-1] == "| NAME takes no images | a1, b1 |"


def test_patterns_that_match_nothing_are_told(tmp_path, capsys):
    out, rows = tmp_path / "timm.jsonl", tmp_path / "timm.csv"
    with pytest.raises(SystemExit):
        timm_sweep.main(["--out", str(out), "--match", "no_such*", "--rows", str(rows)])
    assert "--match no_such* is no architecture of timm; use patterns" in capsys.readouterr().err
    assert not out.exists()
