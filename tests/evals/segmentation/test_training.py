"""A run that is killed anywhere and resumed ends with the weights of one that was never stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from drawn_data import write_data
from safetensors.torch import load_file, save_file

from evals.segmentation.options import TrainOptions
from evals.segmentation.run_folders import LOG
from heads.trainer import read_log
from sail_cli import main
from sail_encoder.io.errors import UserError

OPTIONS = ["--crop", "42", "--steps", "30", "--batch_size", "4", "--warmup", "5", "--log_every", "4", "--overlays", "0"]
HEAD = ["--head_options", '{"dropout": 0.3}']


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_data(tmp_path_factory.mktemp("data")))


def train(data, out, checkpoint, *more):
    return ["segment", "train", data, "--out", str(out), "--model", str(checkpoint), *OPTIONS, *HEAD, *more]


@pytest.fixture(scope="module")
def uninterrupted(data, small_checkpoint, tmp_path_factory):
    folders = {}
    for mode in ("online", "cached"):
        folders[mode] = tmp_path_factory.mktemp(mode)
        assert main(train(data, folders[mode], small_checkpoint, "--mode", mode)) == 0
    return folders


def run_until(command, log, lines, number):
    """Runs a command in a process of its own and sends it a signal when its log has so many lines."""
    process = subprocess.Popen([sys.executable, "-m", "sail_cli", *command], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(120), process.stderr.read()


def assert_same_run(folder, expected):
    one, other = load_file(folder / "head.safetensors"), load_file(expected / "head.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    assert (folder / "results.json").read_text() == (expected / "results.json").read_text()
    assert [line["step"] for line in read_log(folder / LOG)] == [4, 8, 12, 16, 20, 24, 28, 30]


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_killed_and_resumed_is_as_uninterrupted(mode, data, small_checkpoint, uninterrupted, tmp_path):
    """Killed at a random time, with checkpoints that do not coincide with the lines of the log."""
    command = train(data, tmp_path, small_checkpoint, "--mode", mode, "--save_every", "3")
    lines = random.Random(os.getpid()).randint(1, 5)
    status, errors = run_until(command, tmp_path / LOG, lines, signal.SIGKILL)
    assert status == -signal.SIGKILL, f"killed after {lines} lines of the log: {errors}"
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < 30, f"killed after {lines} lines of the log, at step {step}"
    assert main(command) == 0
    assert_same_run(tmp_path, uninterrupted[mode])


def test_a_signal_ends_it_with_a_checkpoint(data, small_checkpoint, uninterrupted, tmp_path, capsys):
    command = train(data, tmp_path, small_checkpoint, "--mode", "online")
    status, errors = run_until(command, tmp_path / LOG, 2, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert f"stopped at step {step}; the same command goes on" in errors
    assert 8 <= step < 30
    assert not (tmp_path / "results.json").exists()
    assert main(command) == 0
    assert_same_run(tmp_path, uninterrupted["online"])


def test_a_finished_run_is_not_trained_again(data, small_checkpoint, uninterrupted, capsys):
    folder = uninterrupted["online"]
    stamp = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert main(train(data, folder, small_checkpoint)) == 0
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == stamp
    assert "mIoU" in capsys.readouterr().out


def test_other_settings_are_refused_until_overwritten(data, small_checkpoint, tmp_path, capsys):
    command = train(data, tmp_path, small_checkpoint, "--steps", "6")
    assert main(command) == 0
    first = load_file(tmp_path / "head.safetensors")
    assert main([*command, "--seed", "1"]) == 2
    assert "seed was 0, now 1; use another --out or --overwrite true" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--overwrite", "true"]) == 0
    second = load_file(tmp_path / "head.safetensors")
    assert main([*command, "--seed", "1", "--precision", "bfloat16"]) == 2
    assert "precision was float32, now bfloat16" in capsys.readouterr().err
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])


def test_another_meaning_of_the_masks_and_other_images_are_refused(small_checkpoint, tmp_path, capsys):
    """Neither the path of the class map nor the number of images has changed."""
    data, meaning = write_data(tmp_path / "data"), tmp_path / "map.json"
    command = train(str(data), tmp_path / "run", small_checkpoint, "--steps", "6", "--class_map", str(meaning))
    meaning.write_text('{"0": "a", "1": "b", "2": "c", "3": "c", "255": null}')
    assert main(command) == 0
    meaning.write_text('{"0": "a", "2": "b", "1": "c", "3": "c", "255": null}')
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert "holds a run with other settings: class_map was" in errors
    assert "training_images was" not in errors
    meaning.write_text('{"0": "a", "1": "b", "2": "c", "3": "c", "255": null}')
    renamed = tmp_path / "elsewhere.json"
    meaning.rename(renamed)
    assert main([*command[:-1], str(renamed)]) == 0
    for kind in ("images", "masks"):
        (data / kind / "train/0.png").rename(data / kind / "train/other.png")
    assert main([*command[:-1], str(renamed)]) == 2
    assert "training_images was 8 named " in capsys.readouterr().err


def test_other_weights_of_the_same_name_are_refused(data, small_checkpoint, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(small_checkpoint, checkpoint)
    command = train(data, tmp_path / "run", checkpoint, "--steps", "6")
    assert main(command) == 0
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(name for name in tensors if "layers.2.mlp" in name)
    save_file({**tensors, name: 2 * tensors[name]}, checkpoint / "model.safetensors", {"format": "pt"})
    assert main(command) == 2
    assert "weights was" in capsys.readouterr().err


def test_folders_of_others_are_not_overwritten(data, small_checkpoint, tmp_path, capsys):
    (tmp_path / "overlays").mkdir()
    assert main(train(data, tmp_path, small_checkpoint, "--overwrite", "true")) == 2
    assert "has overlays and no run.json, so it is no run of sail segment train" in capsys.readouterr().err
    assert (tmp_path / "overlays").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps cannot be 0"),
        ({"batch_size": 0}, "--batch_size cannot be 0"),
        ({"warmup": 10}, "--warmup cannot be 10; allowed is 0 to 9"),
        ({"learning_rate": 0.0}, "--learning_rate cannot be 0.0"),
        ({"weight_decay": -1.0}, "--weight_decay cannot be -1.0"),
    ],
)
def test_recipes_that_are_not_possible(change, message):
    options = {"data": "data", "out": "out", "steps": 10, "batch_size": 2, "warmup": 0}
    with pytest.raises(UserError, match=message):
        TrainOptions(**{**options, **change})
