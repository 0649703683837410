"""The training of sail-tiny: its data, and that it goes on after a kill as if there had been none."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from evals.scenes import TRAINING_SEEDS
from heads.trainer import Trainer
from sail_encoder import SailForCausalLM, load_chat
from sail_encoder.io.errors import UserError
from sail_encoder.models.sail.configuration_sail import SailConfig
from tools import pretrain_tiny, tiny_recipe


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_recipe.build_tokenizer()


def test_the_tokenizer_is_that_of_the_checkpoint(tokenizer):
    shipped = load_chat("sail-tiny").processor.tokenizer
    assert tokenizer.get_vocab() == shipped.get_vocab()


def test_a_batch_depends_on_its_step_alone(tokenizer):
    first = tiny_recipe.SceneBatches(tokenizer, 0).make(7)
    again = next(iter(tiny_recipe.SceneBatches(tokenizer, 7)))
    other = tiny_recipe.SceneBatches(tokenizer, 0).make(8)
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert first["pixel_values"].shape != other["pixel_values"].shape or not torch.equal(
        first["pixel_values"], other["pixel_values"]
    )


@pytest.mark.parametrize("stage", tiny_recipe.STAGES)
def test_batches_fit_their_stage(tokenizer, stage):
    batch = tiny_recipe.SceneBatches(tokenizer, 0).make(stage.until - 1)
    rows, columns = batch["image_grid_hw"][0].tolist()
    assert rows * columns <= stage.patches
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) * rows * columns
    patch = tokenizer.convert_tokens_to_ids("<vpatch>")
    assert (batch["input_ids"] == patch).sum(1).eq(rows * columns).all()


def test_answers_alone_are_learned(tokenizer):
    stage = tiny_recipe.STAGES[-1]
    scene, _ = tiny_recipe.draw_to_grid(TRAINING_SEEDS.start, (8, 8), stage)
    turns = tiny_recipe.converse(scene, np.random.default_rng(0), 4, stage.kinds)
    ids, labels = tiny_recipe.encode(tokenizer, (8, 8), turns)
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned.split("</s>")[:-1] == [f" {turn.answer}" for turn in turns]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


NARROW = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


@pytest.fixture(scope="module")
def _short_training(tokenizer):
    """Steps of a few scenes and of a narrow model, since Muon takes long on a CPU without bfloat16."""
    build = tiny_recipe.build_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_recipe, "build_tokenizer", lambda: tokenizer)
        patch.setattr(tiny_recipe, "build_config", lambda _: SailConfig(**{**build(tokenizer).to_dict(), **NARROW}))
        patch.setattr(tiny_recipe, "TOKENS_PER_STEP", 400)
        patch.setattr(pretrain_tiny, "LOG_EVERY", 2)
        patch.setattr(pretrain_tiny, "SAVE_EVERY", 2)
        patch.setattr(pretrain_tiny, "evaluate", lambda model, tokenizer: {"caption": 0.5})
        yield


def test_whitening_gives_every_direction_its_say():
    """However much more the mean color of a patch varies than its edges, what they embed to varies alike."""
    scales = torch.tensor([30.0, 3.0, 2.0, 1.5, 1.0, 0.9])
    patches = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) * scales + 5
    embedding = torch.nn.Linear(6, 6, bias=False)
    tiny_recipe.whiten(embedding, patches)
    variances = torch.linalg.eigvalsh(torch.cov(embedding(patches).detach().T))
    assert variances.max() / variances.min() < 1.2


def exported(folder):
    return SailForCausalLM.from_pretrained(folder / "export").state_dict()


def assert_same(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(_short_training, tmp_path_factory):
    """A training that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert pretrain_tiny.train(folder, 4, 1e-3, 0) == 0
    return folder


def test_a_killed_training_ends_with_the_same_weights(whole, tmp_path, monkeypatch):
    save = Trainer.save

    def save_and_die(self):
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            pretrain_tiny.train(tmp_path / "resumed", 4, 1e-3, 0)
    assert pretrain_tiny.train(tmp_path / "resumed", 4, 1e-3, 0) == 0
    assert_same(exported(whole), exported(tmp_path / "resumed"))
    summary = json.loads((tmp_path / "resumed" / "export" / "training.json").read_text())
    assert summary["steps"] == 4
    assert summary["accuracy"] == {"caption": 0.5}


def test_stretches_end_with_the_same_weights(whole, tmp_path, monkeypatch, capsys):
    """A signal ends each of them after its step; scenes are drawn by another process."""
    make, stops = Trainer.train_step, {1, 2}

    def step_and_signal(self, batch):
        loss = make(self, batch)
        if self.step in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    statuses = [pretrain_tiny.train(tmp_path / "stretches", 4, 1e-3, workers) for workers in (0, 0, 1)]
    assert statuses == [143, 143, 0]
    assert "stopped at step 2; the same command goes on" in capsys.readouterr().err
    assert_same(exported(whole), exported(tmp_path / "stretches"))


def test_a_training_may_start_from_another_one(whole, tmp_path):
    assert pretrain_tiny.train(tmp_path / "further", 1, 1e-9, 0, start=whole / "export") == 0
    start, end = exported(whole), exported(tmp_path / "further")
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-7) for name in start)
    with pytest.raises(
        UserError, match=r"with other settings: learning_rate was 1e-09, now 0.001; start was [0-9a-f]+"
    ):
        pretrain_tiny.train(tmp_path / "further", 1, 1e-3, 0)
    with pytest.raises(UserError, match="nowhere holds no checkpoint to start from"):
        pretrain_tiny.train(tmp_path / "other", 1, 1e-3, 0, start=tmp_path / "nowhere")


def test_images_are_counted_without_drawing_them(tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_recipe, "TOKENS_PER_STEP", 400)
    scenes = tiny_recipe.SceneBatches(tokenizer, 0)
    assert tiny_recipe.count_images(3) == sum(len(scenes.make(step)["input_ids"]) for step in range(3))
