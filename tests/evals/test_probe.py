"""`sail probe` from end to end, on a backbone that runs in milliseconds."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import results_in

import evals.probing
from evals.features import open_features
from evals.options import default_probes
from heads.registry import load_probe
from heads.ridge import RidgeProbe
from heads.rows import Selection
from sail_cli import main
from sail_encoder.backbones.registry import load_backbone
from sail_encoder.backbones.sail import SailVisionBackbone
from sail_encoder.store.reading import FeatureFolder

PROBES = "linear,logistic,ridge,knn,attentive"


QUICK = {
    "linear": {"steps": 20},
    "logistic": {"C": [0.1, 1.0]},
    "ridge": {},
    "knn": {"k": [3, 5]},
    "attentive": {"steps": 20, "batch_size": 16},
}


@pytest.fixture
def quick(tmp_path):
    """A configuration with quick settings of every probe."""
    path = tmp_path / "quick.yaml"
    path.write_text(json.dumps({"probes": QUICK, "resize": "56"}))
    return path


def test_every_probe_with_baselines(pets, small_checkpoint, quick, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["probe", str(pets), "--config", str(quick), "--out", str(out), "--model", str(small_checkpoint)]
    assert main([*command, "--baselines", "true", "--seeds", "2"]) == 0
    table = capsys.readouterr().out
    assert re.findall(r"^\| (\S+ \S*)", table, re.MULTILINE)[0] == "top1 %"
    assert "raw pixels, 16x16" in table
    assert "random weights" in table
    assert "±" in table
    found = results_in(out)
    assert len(found) == 3 * 5 * 2
    assert {one["probe"] for one in found} == set(QUICK)
    assert all(set(one["metrics"]) == {"top1", "mean_per_class", "f1"} for one in found)
    assert max(one["metrics"]["top1"] for one in found) > 0.9
    assert np.sum([one["confusion"] for one in found[:1]]) == 12
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found)
    assert (out / "results.md").read_text().startswith(table.strip().splitlines()[0])
    pictures = {path.name for path in (out / "plots").iterdir()}
    assert {"path-raw-pixels-16x16-knn.png", "confusion-raw-pixels-16x16-knn.png"} <= pictures


def test_nothing_is_done_twice(pets, small_checkpoint, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["probe", str(pets), "--out", str(out), "--model", str(small_checkpoint), "--plots", "false"]
    assert main([*command, "--probes", "ridge"]) == 0
    capsys.readouterr()
    (features,) = (out / "features").iterdir()
    before = {path: path.stat().st_mtime_ns for path in features.glob("features*")}
    fitted = []
    original = evals.probing.ProbeRun._fit
    monkeypatch.setattr(
        evals.probing.ProbeRun, "_fit", lambda self, *a: (fitted.append(a[0].kind), original(self, *a))[1]
    )
    assert main([*command, "--probes", "ridge,knn"]) == 0
    assert fitted == ["knn"]
    assert {path: path.stat().st_mtime_ns for path in features.glob("features*")} == before
    assert main([*command, "--probes", "ridge", "--layers", "0"]) == 0
    assert fitted == ["knn", "ridge"]
    assert len(list((out / "features").iterdir())) == 2


def test_vectors_come_from_grids_that_are_there(pets, small_checkpoint, quick, tmp_path, monkeypatch):
    out, encoded = tmp_path / "out", []
    command = ["probe", str(pets), "--config", str(quick), "--out", str(out), "--model", str(small_checkpoint)]
    assert main([*command, "--plots", "false"]) == 0
    monkeypatch.setattr(SailVisionBackbone, "forward", lambda *arguments: encoded.append(1))
    (tmp_path / "ridge.yaml").write_text(json.dumps({"resize": "56"}))
    command[3] = str(tmp_path / "ridge.yaml")
    assert main([*command, "--plots", "false", "--probes", "ridge"]) == 0
    assert not encoded
    assert len(list((out / "features").iterdir())) == 1


def test_other_precision_or_type_is_another_result(pets, small_checkpoint, tmp_path):
    command = ["probe", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint), "--probes", "ridge"]
    changes = ([], ["--precision", "bfloat16"], ["--store-dtype", "float32"], ["--precision", "bfloat16"], [])
    for change in changes:
        assert main([*command, "--plots", "false", *change]) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == 3


def test_no_deeper_than_needed(pets, small_checkpoint, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "sail_encoder.backbones.registry.load_backbone",
        lambda *a, **k: loaded.append(load_backbone(*a, **k)) or loaded[-1],
    )
    command = ["probe", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint), "--probes", "ridge"]
    assert main([*command, "--plots", "false", "--layers", "1,0"]) == 0
    assert [backbone.num_layers for backbone in loaded] == [2]


def test_a_signal_while_extracting_ends_with_its_status(pets, small_checkpoint, tmp_path, monkeypatch, capsys):
    stopped = 143, SimpleNamespace(done=7), None
    monkeypatch.setattr("evals.features.run_plan", lambda *arguments: stopped)
    with pytest.raises(SystemExit) as ended:
        main(["probe", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint)])
    assert ended.value.code == 143
    assert "7 images are safe, the same command goes on" in capsys.readouterr().err


def test_vectors_are_read_when_they_are_needed(pets, small_checkpoint, tmp_path, monkeypatch):
    assert main(["extract", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint), "--pool", "mean"]) == 0
    features = open_features(str(tmp_path), "concat", "mean")
    keys = [entry.path for entry in features.folder.entries][::2]
    vectors, targets = features.vectors(keys), np.arange(len(keys)) % 2
    assert isinstance(vectors.matrix, np.memmap)
    sizes = []
    original = Selection.__getitem__
    monkeypatch.setattr(
        Selection, "__getitem__", lambda self, rows: (lambda a: sizes.append(len(a)) or a)(original(self, rows))
    )
    lean = RidgeProbe([1.0], working_memory=16384).fit(vectors, targets)
    assert 0 < max(sizes) < len(keys)
    whole = RidgeProbe([1.0]).fit(np.array(features.folder.matrix()[::2]), targets)
    np.testing.assert_allclose(lean.scores(vectors), whole.scores(np.array(vectors)), rtol=1e-6, atol=1e-9)


def test_heads_are_saved_for_their_features_alone(pets, small_checkpoint, tmp_path):
    out = tmp_path / "out"
    assert main(["probe", str(pets), "--out", str(out), "--model", str(small_checkpoint), "--probes", "ridge"]) == 0
    (folder,) = (out / "heads").glob("*/ridge-seed0")
    (features,) = (out / "features").iterdir()
    head, stored = load_probe(folder), FeatureFolder(features)
    truth = [entry.path.split("/")[0] for entry in stored.entries]
    assert np.mean(head.predict(stored.matrix()) == truth) > 0.9
    source = json.loads((folder / "head.json").read_text())["source"]
    assert source["weights"] == stored.settings["weights"]
    assert source["pool"] == "mean"


def test_a_saved_head_is_that_of_the_result(pets, small_checkpoint, tmp_path):
    command = ["probe", str(pets), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint), "--plots", "false"]

    def run(k):
        (tmp_path / "config.yaml").write_text(json.dumps({"probes": {"knn": {"k": k}}}))
        assert main([*command, "--config", str(tmp_path / "config.yaml")]) == 0
        (folder,) = (tmp_path / "out" / "heads").glob("*/knn-seed0")
        assert (results_in(tmp_path / "out")[0]["chosen"], load_probe(folder).chosen_) == (k, k)

    for k in (5, 20, 5):
        run(k)
    shutil.rmtree(tmp_path / "out" / "heads")
    run(5)


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_features_that_sail_extract_has_left(pets, small_checkpoint, tmp_path, pool, capsys):
    features = tmp_path / "features"
    extract = [
        "extract",
        str(pets),
        "--out",
        str(features),
        "--model",
        str(small_checkpoint),
        "--store-dtype",
        "float32",
    ]
    assert main([*extract, "--pool", pool, "--layers", "0,-1"]) == 0
    command = ["probe", str(features), "--out", str(tmp_path / "a"), "--probes", "ridge"]
    assert main(command) == 0
    direct = ["probe", str(pets), "--out", str(tmp_path / "b"), "--probes", "ridge", "--model", str(small_checkpoint)]
    assert main([*direct, "--layers", "0,-1", "--store-dtype", "float32"]) == 0
    assert results_in(tmp_path / "a")[0]["metrics"] == results_in(tmp_path / "b")[0]["metrics"]
    rows = "".join(f"{entry.path},{len(entry.path)}\n" for entry in FeatureFolder(features).entries)
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    labels = ["--labels", str(tmp_path / "labels.csv"), "--task", "regression"]
    capsys.readouterr()
    assert main([*command, *labels]) == 0
    assert "r2" in capsys.readouterr().out
    if pool == "mean":
        assert main(["probe", str(features), "--out", str(tmp_path / "c"), "--probes", "attentive"]) == 2
        assert "attentive needs grids" in capsys.readouterr().err


def test_the_default_probes_are_those_that_can_be():
    assert default_probes("classification") == default_probes("multilabel") == PROBES
    assert default_probes("regression") == "linear,ridge,knn,attentive"
    assert default_probes("classification", grids=False) == "linear,logistic,ridge,knn"
    assert default_probes("classification", online=True) == "linear,attentive"


@pytest.mark.parametrize("name", ["scenes-shapes", "scenes-position"])
def test_labels_and_numbers(name, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("evals.datasets.made.SCENE_PARTS", {"train": 40, "val": 10, "test": 10})
    command = ["probe", name, "--out", str(tmp_path), "--model", str(small_checkpoint), "--baselines", "false"]
    assert main([*command, "--probes", "ridge,knn", "--plots", "false"]) == 0
    expected = {"mAP", "f1", "f1_micro", "exact"} if name == "scenes-shapes" else {"r2", "mae"}
    assert set(results_in(tmp_path)[0]["metrics"]) == expected


def test_images_that_cannot_be_read_are_left_out(pets, small_checkpoint, tmp_path, capsys):
    shutil.copytree(pets, tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "00.png").write_bytes(b"nothing")
    command = ["probe", str(tmp_path / "pets"), "--out", str(tmp_path / "out"), "--probes", "ridge"]
    assert main([*command, "--model", str(small_checkpoint)]) == 1
    (reasons,) = (tmp_path / "out" / "features").glob("*/failures.csv")
    assert f"1 images could not be read and were left out; {reasons} says why" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "command line"])
@pytest.mark.parametrize("old", ["lrs", "lr"])
def test_spellings_of_the_first_version_work_with_a_line_about_them(old, place, pets, tmp_path, capsys):
    def command(setting):
        probes = f"{{linear: {{{setting}: [0.01, 0.1], steps: 3}}}}"
        (tmp_path / "config.yaml").write_text(f"probes: {probes}\n")
        given = ["--config", str(tmp_path / "config.yaml")] if place == "file" else ["--probes", probes]
        return ["probe", str(pets), "--out", str(tmp_path / "out"), "--model", "raw/14", "--resize", "28", *given]

    assert main(command(old)) == 0
    told = f"probe 'linear': '{old}' is now 'learning_rates'; the old spelling works in this release only"
    assert capsys.readouterr().err.splitlines().count(told) == 1
    assert main(command("learning_rates")) == 0
    assert "is now" not in capsys.readouterr().err
    (result,) = results_in(tmp_path / "out")
    assert (result["parameter"], [rate for rate, _ in result["path"]]) == ("learning_rate", [0.01, 0.1])
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 1


def test_a_setting_under_both_of_its_names_is_refused(pets, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("probes: {linear: {lrs: [0.01], learning_rates: [0.1]}}\n")
    command = ["probe", str(pets), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
    assert main(command) == 2
    assert "probe 'linear' has lrs beside the present names; give learning_rates alone" in capsys.readouterr().err
