"""Probes trained with the backbone in the loop: several processes, kills, images that cannot be read."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import results_in

from evals.crops import CroppedImages
from evals.datasets.loading import load_dataset
from heads.registry import load_probe
from heads.trainer import Trainer
from sail_cli import main

ONLINE = {
    "linear": {"learning_rates": [0.01, 0.3], "steps": 12, "batch_size": 8},
    "attentive": {"steps": 4, "batch_size": 8},
}


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
    original = Trainer.train_step

    def stop_at_eight(self, *batch):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "train_step", stop_at_eight)
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


def test_a_signal_stops_online_training_with_its_status(pets, small_checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text(json.dumps({"probes": {"linear": ONLINE["linear"]}, "plots": False}))
    command = ["probe", str(pets), "--config", str(tmp_path / "config.yaml"), "--model", str(small_checkpoint)]
    command += ["--online", "--crop", "28", "--workers", "1", "--out", str(tmp_path / "out")]
    original = Trainer.train_step

    def step_and_signal(self, batch):
        loss = original(self, batch)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 130
    assert "stopped at step 4; the same command goes on" in capsys.readouterr().err
    assert torch.load(tmp_path / "out/online/linear-seed0.pt", weights_only=True)["step"] == 4


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
import os, signal, sys
import evals.online
from heads.trainer import Trainer
from sail_cli import main

rank, step, build = int(os.environ["RANK"]), Trainer.train_step, evals.online.build_probe
steps = 0
signalled = int(os.environ.get("SIGNAL_AT", 0))

def build_here(name, options, task, seed, device):
    return build(name, options, task, seed, f"cpu:{rank}")

def count(self, *batch):
    global steps
    steps += 1
    if steps == signalled and rank:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *batch)

evals.online.CHECKPOINT_EVERY, evals.online.build_probe, Trainer.train_step = 5, build_here, count
status = main(sys.argv[1:])
print(f"process {rank} took {steps} steps")
sys.exit(status)
"""
"""Checkpoints every five steps; as with several GPUs, each process computes on a device of another name."""


def test_two_processes_go_on_from_a_checkpoint_together(pets, small_checkpoint, tmp_path, capsys):
    """A signal to one of them stops both after the same step.

    They end with the weights and the results of one process that was never stopped, and print once.
    """
    (tmp_path / "train.py").write_text(ON_A_DEVICE_EACH)
    (tmp_path / "config.yaml").write_text(json.dumps({"probes": ONLINE, "plots": False}))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "train.py"))
    command = [sys.executable, *launcher, "probe", str(pets), "--model", str(small_checkpoint), "--online=true"]
    command += ["--crop=28", "--workers=0", f"--config={tmp_path / 'config.yaml'}"]

    def train(name, **more):
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), **more}
        return subprocess.run([*command, f"--out={tmp_path / name}"], capture_output=True, text=True, env=environment)

    def steps_done():
        return torch.load(tmp_path / "stopped/online/linear-seed0.pt", weights_only=True)["step"]

    assert train("stopped", SIGNAL_AT="8").returncode != 0
    assert steps_done() == 8
    resumed = train("stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert sorted(re.findall(r"process \d took \d+ steps", resumed.stdout)) == [
        f"process {rank} took {4 + 4} steps" for rank in (0, 1)
    ]
    alone = ["probe", str(pets), "--model", str(small_checkpoint), "--online=true", "--crop=28", "--workers=0"]
    assert main([*alone, f"--config={tmp_path / 'config.yaml'}", f"--out={tmp_path / 'whole'}"]) == 0
    assert resumed.stdout.count("top1") == capsys.readouterr().out.count("top1") == 1
    np.testing.assert_allclose(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole"), rtol=1e-5, atol=1e-7)
    together, alone = results_in(tmp_path / "stopped"), results_in(tmp_path / "whole")
    assert [result["metrics"] for result in together] == [result["metrics"] for result in alone]
    assert together[0]["path"] == alone[0]["path"]
    assert alone[0]["metrics"]["top1"] > 0.8


def test_augmentation_depends_on_its_number_alone(pets):
    images = CroppedImages(load_dataset(str(pets)), 28, seed=0)
    first, again, other = images[3, 7][0], images[3, 7][0], images[3, 8][0]
    assert first.shape == (28, 28, 3)
    assert (first == again).all()
    assert (first != other).any()
    assert (first != CroppedImages(load_dataset(str(pets)), 28, seed=1)[3, 7][0]).any()
    centered = CroppedImages(load_dataset(str(pets)), 28, seed=None)
    assert (centered[3, 7][0] == centered[3, 8][0]).all()
