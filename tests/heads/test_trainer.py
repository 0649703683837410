"""The trainer: a stopped or killed training ends as one that was never stopped; what it logs, keeps and refuses."""

import errno
import os
import signal
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from heads import trainer as module
from heads.processes import Processes
from heads.recipe import Recipe
from heads.trainer import Trainer, read_log
from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.io.json_lines import LineLog

STEPS = 12


def batches(first, last):
    """Inputs and classes that depend on the number of the batch alone."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 5, generator=generator)
        yield inputs, (inputs[:, 0] > 0).long()


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make_trainer(folder=None, settings=None, processes=None, **changes):
    """A small network with dropout and a batch norm, which is a function of the seed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2))
    recipe = Recipe(**{"learning_rates": (0.05,), "steps": STEPS, "warmup": 2, **changes})
    kept = {"checkpoint": folder / "checkpoint.pt", "log": folder / "log.jsonl"} if folder else {}
    return Trainer(model, recipe, loss, settings=settings, processes=processes, **kept)


class KilledError(Exception):
    pass


def killed_at(step):
    """Batches that end with a kill before the batch of a step is seen."""

    def until(first, last):
        yield from batches(first, step)
        raise KilledError

    return until


def signalled_at(step, number):
    """Batches during one of which a signal comes."""

    def until(first, last):
        for index, batch in zip(count(first), batches(first, last), strict=False):
            if index == step:
                os.kill(os.getpid(), number)
            yield batch

    return until


def weights(trainer):
    return trainer.finish().state_dict()


RECIPES = [
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd", "ema": 0.9, "schedule": "poly", "clip": 0.5},
    {"optimizer": "lars", "ema": 0.5, "learning_rates": (2.0,)},
]


@pytest.mark.parametrize("changes", RECIPES, ids=lambda changes: changes["optimizer"])
def test_a_killed_training_ends_as_an_uninterrupted_one(changes, tmp_path):
    whole = make_trainer(**changes)
    assert whole.run(batches) == 0
    with pytest.raises(KilledError):
        make_trainer(tmp_path, **changes).run(killed_at(8), save_every=3)
    resumed = make_trainer(tmp_path, **changes)
    resumed.resume()
    assert resumed.step == 6
    assert resumed.run(batches) == 0
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_after_the_step(number, tmp_path, capsys):
    whole = make_trainer()
    whole.run(batches)
    trainer = make_trainer(tmp_path)
    assert trainer.run(signalled_at(4, number)) == 128 + number
    assert trainer.step == 5
    assert "stopped at step 5; the same command goes on" in capsys.readouterr().err
    resumed = make_trainer(tmp_path)
    resumed.resume()
    assert resumed.step == 5
    resumed.run(batches)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_signal_in_the_last_step_comes_too_late(tmp_path):
    trainer = make_trainer(tmp_path)
    assert trainer.run(signalled_at(STEPS - 1, signal.SIGTERM)) == 0
    assert trainer.finished


def test_without_a_checkpoint_a_signal_ends_the_process_as_ever():
    with pytest.raises(KeyboardInterrupt):
        make_trainer().run(signalled_at(4, signal.SIGINT))


def test_another_process_may_be_the_one_that_is_stopped(tmp_path):
    class Alone(Processes):
        """Of two processes the one that no signal reaches."""

        def wrap(self, module):
            return module

        def gather(self, part):
            return [part, 143 if part == 0 and trainer.step == 5 else part]

    trainer = make_trainer(tmp_path, processes=Alone(0, 2))
    assert trainer.run(batches) == 143
    assert trainer.step == 5


def test_other_settings_are_refused_by_name(tmp_path):
    make_trainer(tmp_path, {"crop": 28, "layers": (1, 2), "seed": 0}).save()
    make_trainer(tmp_path, {"crop": 28, "layers": (1, 2), "seed": 0}).resume()
    with pytest.raises(StoreError) as caught:
        make_trainer(tmp_path, {"crop": 42, "layers": (1, 2), "seed": 1}).resume()
    assert str(caught.value).endswith(
        "checkpoint.pt is of an unfinished training with other settings: crop was 28, now 42; seed was 0, now 1; "
        "use another --out, or delete the file"
    )


def test_processes_that_find_different_checkpoints_say_so(tmp_path):
    class Apart(Processes):
        def wrap(self, module):
            return module

        def gather(self, part):
            return [part, 500]

    trainer = make_trainer(tmp_path, processes=Apart(0, 2))
    with pytest.raises(StoreError, match=r"processes find different steps in .*: 0, 500; let them share the folder"):
        trainer.resume()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_told_in_one_line(content, tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.save()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged \(.*\); delete it to train from") as caught:
        trainer.resume()
    assert "\n" not in str(caught.value)


OF_0_1_0 = {
    "probe": {"made_of": "{}", "step": 5, "bank": {}, "optimizer": {}, "scheduler": {}},
    "segmentation": {"head": {}, "optimizer": {}, "scheduler": {}, "step": 5, "random": {}},
}


@pytest.mark.parametrize("content", OF_0_1_0.values(), ids=OF_0_1_0)
def test_a_checkpoint_of_the_first_version_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint.pt is a checkpoint of another version; delete it to train"):
        make_trainer(tmp_path).resume()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    trainer.step = 3
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_log_and_validation(tmp_path):
    trainer = make_trainer(tmp_path, schedule="poly", learning_rates=(1e-3,), steps=10)
    modes = []

    def validate():
        trainer.module.eval()
        return {"mIoU": trainer.step / 100}

    def remember(model, batch):
        modes.append(trainer.module.training)
        return loss(model, batch)

    trainer.loss = remember
    trainer.run(batches, log_every=5, save_every=4, validate_every=4, validate=validate)
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], "mIoU" in line) for line in lines] == [(4, True), (5, False), (8, True), (10, False)]
    assert lines[1]["learning_rate"] == pytest.approx(1e-3 * (1 - 3 / 8))
    assert 0.3 < lines[1]["loss"] < 1.5
    assert all(modes)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10


def test_what_a_killed_run_has_logged_beyond_its_checkpoint_is_dropped(tmp_path):
    with pytest.raises(KilledError):
        make_trainer(tmp_path).run(killed_at(8), save_every=3, log_every=1)
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == 8
    trainer = make_trainer(tmp_path)
    trainer.resume()
    trainer.run(batches, log_every=1)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(1, STEPS + 1))


def test_losses_are_read_from_the_device_only_for_the_log(tmp_path, monkeypatch):
    read, as_float = [], Tensor.__float__
    monkeypatch.setattr(Tensor, "__float__", lambda tensor: read.append(1) or as_float(tensor))
    monkeypatch.setattr(Tensor, "item", lambda tensor: read.append(1) or as_float(tensor))
    make_trainer(tmp_path, optimizer="sgd").run(batches, log_every=4)
    assert len(read) == STEPS / 4


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.module[0].bias.data[0] = torch.nan
    with pytest.raises(UserError, match="the loss is nan at step 5; use a lower --learning_rate"):
        trainer.run(batches, log_every=5)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with LineLog(tmp_path / "log.jsonl"), pytest.raises(UserError, match="another run is writing"):
        make_trainer(tmp_path).run(batches)


def test_weights_that_have_no_gradient_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    before = [parameter.clone() for parameter in model.parameters()]
    Trainer(model, Recipe((0.1,), steps=3, weight_decay=0.1), loss).run(batches)
    same = [torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [1, 100_000])
def test_a_disk_that_is_full_is_called_full(numbers, tmp_path):
    (tmp_path / "checkpoint.pt").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        module._write({"weights": torch.zeros(numbers)}, tmp_path / "checkpoint.pt")
    assert caught.value.errno == errno.ENOSPC
