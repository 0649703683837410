"""`sail probe` from end to end, on a backbone that runs in milliseconds."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest

import evals.probing
from evals.checkpoint import Checkpoint
from evals.crops import CroppedImages
from evals.datasets.loading import load_dataset
from evals.features import open_features
from evals.probing import default_probes
from evals.processes import Processes
from heads.registry import load_probe
from heads.ridge import RidgeProbe
from heads.rows import Selection
from heads.training import BankTraining
from sail_cli import main
from sail_encoder.backbone import VisionBackbone
from sail_encoder.errors import StoreError
from sail_encoder.loading import load_backbone
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


def results(out):
    return json.loads((out / "results.json").read_text())["results"]


def test_every_probe_with_baselines(pets, small_checkpoint, quick, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["probe", str(pets), "--config", str(quick), "--out", str(out), "--model", str(small_checkpoint)]
    assert main([*command, "--baselines", "true", "--seeds", "2"]) == 0
    table = capsys.readouterr().out
    assert re.findall(r"^\| (\S+ \S*)", table, re.MULTILINE)[0] == "top1 %"
    assert "raw pixels, 16x16" in table
    assert "random weights" in table
    assert "±" in table
    found = results(out)
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
    monkeypatch.setattr(VisionBackbone, "encode_packed", lambda *arguments: encoded.append(1))
    (tmp_path / "ridge.yaml").write_text(json.dumps({"resize": "56"}))
    command[3] = str(tmp_path / "ridge.yaml")
    assert main([*command, "--plots", "false", "--probes", "ridge"]) == 0
    assert not encoded
    assert len(list((out / "features").iterdir())) == 1


def test_other_precision_or_type_is_another_result(pets, small_checkpoint, tmp_path):
    command = ["probe", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint), "--probes", "ridge"]
    changes = ([], ["--precision", "bfloat16"], ["--dtype", "float32"], ["--precision", "bfloat16"], [])
    for change in changes:
        assert main([*command, "--plots", "false", *change]) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == 3


def test_no_deeper_than_needed(pets, small_checkpoint, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "evals.features.load_backbone", lambda *a, **k: loaded.append(load_backbone(*a, **k)) or loaded[-1]
    )
    command = ["probe", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint), "--probes", "ridge"]
    assert main([*command, "--plots", "false", "--layers", "1,0"]) == 0
    assert [backbone.num_layers for backbone in loaded] == [2]


def test_a_signal_while_extracting_ends_with_its_status(pets, small_checkpoint, tmp_path, monkeypatch, capsys):
    stopped = SimpleNamespace(progress=SimpleNamespace(done=7), status=143)
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
        assert (results(tmp_path / "out")[0]["chosen"], load_probe(folder).chosen_) == (k, k)

    for k in (5, 20, 5):
        run(k)
    shutil.rmtree(tmp_path / "out" / "heads")
    run(5)


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_features_that_sail_extract_has_left(pets, small_checkpoint, tmp_path, pool, capsys):
    features = tmp_path / "features"
    extract = ["extract", str(pets), "--out", str(features), "--model", str(small_checkpoint), "--dtype", "float32"]
    assert main([*extract, "--pool", pool, "--layers", "0,-1"]) == 0
    command = ["probe", str(features), "--out", str(tmp_path / "a"), "--probes", "ridge"]
    assert main(command) == 0
    direct = ["probe", str(pets), "--out", str(tmp_path / "b"), "--probes", "ridge", "--model", str(small_checkpoint)]
    assert main([*direct, "--layers", "0,-1", "--dtype", "float32"]) == 0
    assert results(tmp_path / "a")[0]["metrics"] == results(tmp_path / "b")[0]["metrics"]
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


@pytest.mark.parametrize("command", ["probe", "sweep"])
def test_numbers_have_no_logistic_regression(command, small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evals.datasets.made.SCENE_PARTS", {"train": 20, "val": 5, "test": 5})
    options = ["scenes-position", "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([command, *options, "--probes", "logistic"]) == 2
    assert "logistic regression has no task 'regression'; use ridge" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    if command == "sweep":
        assert main([command, *options, "--plots", "false"]) == 0
        assert "logistic" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["scenes-shapes", "scenes-position"])
def test_labels_and_numbers(name, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("evals.datasets.made.SCENE_PARTS", {"train": 40, "val": 10, "test": 10})
    command = ["probe", name, "--out", str(tmp_path), "--model", str(small_checkpoint), "--baselines", "false"]
    assert main([*command, "--probes", "ridge,knn", "--plots", "false"]) == 0
    expected = {"mAP", "f1", "f1_micro", "exact"} if name == "scenes-shapes" else {"r2", "mae"}
    assert set(results(tmp_path)[0]["metrics"]) == expected


def test_images_that_cannot_be_read_are_left_out(pets, small_checkpoint, tmp_path, capsys):
    shutil.copytree(pets, tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "00.png").write_bytes(b"nothing")
    command = ["probe", str(tmp_path / "pets"), "--out", str(tmp_path / "out"), "--probes", "ridge"]
    assert main([*command, "--model", str(small_checkpoint)]) == 1
    (reasons,) = (tmp_path / "out" / "features").glob("*/failures.csv")
    assert f"1 images could not be read and were left out; {reasons} says why" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["probe", "sweep"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_of_which_nothing_can_be_read(pets, small_checkpoint, tmp_path, command, part, capsys):
    for number, image in enumerate(sorted(pets.rglob("*.png"))):
        path = tmp_path / "set" / ("train", "val", "test")[number % 3] / image.parent.name / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing" if path.parts[-3] == part else image.read_bytes())
    arguments = [str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([command, *arguments, "--probes", "ridge"]) == 2
    name = {"train": "training", "val": "validation"}.get(part, part)
    assert f"none of the 20 images of the {name} set of set can be read" in capsys.readouterr().err


def test_images_on_both_sides_are_told(pets, small_checkpoint, tmp_path, capsys):
    rows = [f"{path},{path.parent.name},train" for path in sorted(pets.rglob("*.png"))]
    rows += [row.replace(",train", ",test") for row in rows[:7] + rows[-7:]]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    command = ["probe", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--probes", "ridge"]
    assert main([*command, "--model", str(small_checkpoint)]) == 0
    assert "warning: 14 images of the test set are in the training or validation set too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probes", "linaer"], "no head 'linaer'; there is linear"),
        (["--probes", ""], "no probe was named"),
        (["--seeds", "0"], "seeds is 0"),
        (["--val_share", "1"], "val_share is 1"),
        (["--layers", "9"], "layer 9 does not exist"),
        (["--online", "true", "--probes", "knn"], "knn cannot see augmented images"),
        (
            ["--online", "true", "--probes", "linear", "--crop", "30"],
            "not a multiple of the patch size 14; the nearest",
        ),
        (["--config", "{config}"], "probe 'knn' has no setting 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_mistakes_are_one_line(pets, small_checkpoint, tmp_path, arguments, message, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("probes: {knn: {temprature: 1}}\n")
    arguments = [argument.format(config=config) for argument in arguments]
    command = ["probe", str(pets), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint), *arguments]
    assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sail: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.fixture(scope="module")
def sources(pets, small_checkpoint, tmp_path_factory):
    """A data set of each kind that sail probe reads, by name."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(folder / "pets.tar", "w") as shard:
        for image in sorted(pets.rglob("*.png")):
            shard.add(image, f"{image.stem}.png")
    (folder / "list.csv").write_text(
        "".join(["path,label\n", *(f"{one},{one.parent.name}\n" for one in pets.rglob("*.png"))])
    )
    model = ["--model", str(small_checkpoint)]
    for pool in ("none", "mean"):
        assert main(["extract", str(pets), "--out", str(folder / pool), "--pool", pool, *model]) == 0
    names = {"shards": "pets.tar", "table": "list.csv", "grids": "none", "vectors": "mean"}
    return {"folder": str(pets), "made": "digits"} | {kind: str(folder / name) for kind, name in names.items()}


def test_a_path_listed_twice_is_refused(sources, tmp_path, capsys):
    paths = [entry.path for entry in FeatureFolder(sources["vectors"]).entries]
    rows = [f"{path},{number % 2}" for number, path in enumerate([*paths, paths[3], f"./{paths[5]}"])]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    command = ["probe", sources["vectors"], "--out", str(tmp_path / "out"), "--probes", "ridge"]
    assert main([*command, "--labels", str(tmp_path / "labels.csv")]) == 2
    assert f"lists 2 paths more than once, such as {paths[3]}; keep one row of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "option"),
    [
        *(("folder", f"{name} {value}") for name, value in (("labels", "x"), ("label_column", "x"))),
        *((kind, "labels x") for kind in ("made", "table", "shards")),
        *(("made", "label_column x"), ("grids", "label_column x")),
        *(("table", "crop 224"), ("made", "workers 0")),
        *(("grids", f"{name} x") for name in ("model", "layers", "resize")),
        *(("grids", "norm false"), ("grids", "dtype float32"), ("grids", "precision bfloat16")),
        *(("grids", "max_tokens 9"), ("grids", "baselines true"), ("vectors", "pool max")),
    ],
)
def test_options_that_nothing_reads_are_refused(sources, source, option, tmp_path, capsys):
    name, value = option.split()
    assert main(["probe", sources[source], "--out", str(tmp_path / "out"), f"--{name}", value]) == 2
    assert f"--{name} " in (error := capsys.readouterr().err)
    assert "has no effect with" in error or "has no effect without" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["resize 56", "max_tokens 9", "dtype float32", "baselines true"])
def test_online_training_stores_no_features(sources, option, tmp_path, capsys):
    name, value = option.split()
    command = ["probe", sources["folder"], "--out", str(tmp_path / "out"), "--online", "true"]
    assert main([*command, f"--{name}", value]) == 2
    assert f"--{name} has no effect with --online true" in capsys.readouterr().err


def test_one_class_is_told_before_anything_is_extracted(pets, small_checkpoint, tmp_path, capsys):
    command = ["probe", str(pets / "cat"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main(command) == 2
    assert "is in no folder that names its class" in capsys.readouterr().err
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cat").symlink_to(pets / "cat")
    assert main(["probe", str(tmp_path / "one"), *command[2:]]) == 2
    assert "labels are one class, 'cat'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["probe", "sweep"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_unknown_classes_are_told_before_anything_is_extracted(pets, small_checkpoint, tmp_path, command, part, capsys):
    rows = [
        f"{path},{path.parent.name},{('train', 'val', 'test')[n % 3]}" for n, path in enumerate(pets.rglob("*.png"))
    ]
    rows.append(f"{rows[0].split(',')[0]},fox,{part}")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    options = [str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([command, *options, "--probes", "ridge"]) == 2
    assert re.search(
        r"1 classes of the (validation|test) set of .* training set, such as 'fox'", capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


ONLINE = {"linear": {"lrs": [0.01, 0.3], "steps": 12, "batch_size": 8}, "attentive": {"steps": 4, "batch_size": 8}}


def online(pets, checkpoint, out, *launcher):
    config = out.with_suffix(".yaml")
    config.write_text(json.dumps({"probes": ONLINE, "online": True, "crop": 28, "workers": 0, "plots": False}))
    command = [*launcher, "-m", "sail_cli", "probe", str(pets), "--config", str(config)]
    return subprocess.run(
        [sys.executable, *command, "--out", str(out), "--model", str(checkpoint)], capture_output=True, text=True
    )


def test_online_in_one_process_and_in_two(pets, small_checkpoint, tmp_path):
    alone = online(pets, small_checkpoint, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    both = online(pets, small_checkpoint, tmp_path / "both", *launcher)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("top1") == 1
    first, second = results(tmp_path / "alone"), results(tmp_path / "both")
    assert first[0]["path"] == second[0]["path"]
    assert first[0]["metrics"] == second[0]["metrics"]
    weights = [
        load_probe(next((tmp_path / name / "heads").glob("*/linear-seed0"))).tensors() for name in ("alone", "both")
    ]
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], rtol=1e-3, atol=1e-5)
    assert first[0]["metrics"]["top1"] > 0.8


def weights_of(out):
    return load_probe(next((out / "heads").glob("*/linear-seed0"))).tensors()["weights.0"]


def test_online_goes_on_from_a_checkpoint(pets, small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evals.online.CHECKPOINT_EVERY", 5)
    arguments = ["--online", "true", "--crop", "28", "--workers", "0", "--plots", "false"]
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"probes": {"linear": ONLINE["linear"]}}))
    command = ["probe", str(pets), "--config", str(config), "--model", str(small_checkpoint), *arguments]
    whole, stopped = (["--out", str(tmp_path / name)] for name in ("whole", "stopped"))
    assert main([*command, *whole]) == 0
    steps = []
    original = BankTraining.step

    def stop_at_eight(self, *batch):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        original(self, *batch)

    monkeypatch.setattr(BankTraining, "step", stop_at_eight)
    assert main([*command, *stopped]) == 130
    capsys.readouterr()
    assert main([*command, *stopped, "--crop", "42"]) == 2
    assert "linear-seed0.pt is of an unfinished training with other settings: crop was 28, now 42" in (
        capsys.readouterr().err
    )
    assert main([*command, *stopped]) == 0
    assert len(steps) == 8 + 12 - 5
    np.testing.assert_array_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped"))
    assert not list((tmp_path / "stopped" / "online").iterdir())
    assert main([*command, *stopped]) == 0
    assert len(steps) == 8 + 12 - 5
    assert len((tmp_path / "stopped" / "results.jsonl").read_text().splitlines()) == 1
    shutil.rmtree(tmp_path / "stopped" / "heads")
    assert main([*command, *stopped]) == 0
    assert len(steps) == 8 + 2 * 12 - 5
    np.testing.assert_array_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped"))


def test_online_counts_what_cannot_be_read_in_all_parts(pets, small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evals.online.TEST_BATCH", 1)
    broken = {"train": 1, "val": 2, "test": 4}
    for number, image in enumerate(sorted(pets.rglob("*.png"))):
        part = ("train", "val", "test")[number % 3]
        path = tmp_path / "set" / part / image.parent.name / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing" if number // 3 < broken[part] else image.read_bytes())
    options = {"probes": {"linear": ONLINE["linear"]}, "online": True, "crop": 28, "workers": 0, "plots": False}
    (tmp_path / "config.yaml").write_text(json.dumps(options))
    command = ["probe", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([*command, "--config", str(tmp_path / "config.yaml")]) == 1
    assert "7 images could not be read and were left out" in capsys.readouterr().err


ON_A_DEVICE_EACH = """
import os, sys
import evals.online
from heads.training import BankTraining
from sail_cli import main

rank, step, build = int(os.environ["RANK"]), BankTraining.step, evals.online.build_probe
steps = 0

def build_here(name, options, task, seed, device):
    return build(name, options, task, seed, f"cpu:{rank}")

def count(self, *batch):
    global steps
    steps += 1
    if steps == int(os.environ.get("STOP_AT", 0)):
        sys.exit(3)
    step(self, *batch)

evals.online.CHECKPOINT_EVERY, evals.online.build_probe, BankTraining.step = 5, build_here, count
status = main(sys.argv[1:])
print(f"process {rank} took {steps} steps")
sys.exit(status)
"""
"""Checkpoints every five steps; as with several GPUs, each process computes on a device of another name."""


def test_two_processes_go_on_from_a_checkpoint_together(pets, small_checkpoint, tmp_path):
    (tmp_path / "train.py").write_text(ON_A_DEVICE_EACH)
    (tmp_path / "config.yaml").write_text(json.dumps({"probes": {"linear": ONLINE["linear"]}, "plots": False}))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "train.py"))
    command = [sys.executable, *launcher, "probe", str(pets), "--model", str(small_checkpoint), "--online=true"]
    command += ["--crop=28", "--workers=0", f"--config={tmp_path / 'config.yaml'}"]

    def train(name, **more):
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), **more}
        return subprocess.run([*command, f"--out={tmp_path / name}"], capture_output=True, text=True, env=environment)

    assert train("stopped", STOP_AT="8").returncode != 0
    resumed = train("stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert sorted(re.findall(r"process \d took \d+ steps", resumed.stdout)) == [
        f"process {rank} took {12 - 5} steps" for rank in (0, 1)
    ]
    assert train("whole").returncode == 0
    np.testing.assert_allclose(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole"), rtol=1e-5, atol=1e-7)


def test_processes_that_find_different_checkpoints_say_so(tmp_path):
    class Apart(Processes):
        def gather(self, part):
            return [part, 500]

    checkpoint = Checkpoint(tmp_path / "linear.pt", {}, Apart(0, 2))
    with pytest.raises(StoreError, match=r"processes find different steps in .*: 0, 500; let them share the folder"):
        checkpoint.restore(SimpleNamespace(restore=lambda path, made_of: 0))


def test_augmentation_depends_on_its_number_alone(pets):
    images = CroppedImages(load_dataset(str(pets)), 14, 28, seed=0)
    first, again, other = images[3, 7][0], images[3, 7][0], images[3, 8][0]
    assert first.shape == (4, 3 * 14 * 14)
    assert (first == again).all()
    assert (first != other).any()
    assert (first != CroppedImages(load_dataset(str(pets)), 14, 28, seed=1)[3, 7][0]).any()
    centered = CroppedImages(load_dataset(str(pets)), 14, 28, seed=None)
    assert (centered[3, 7][0] == centered[3, 8][0]).all()
