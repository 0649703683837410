"""The training of sail-tiny: its data, and that it goes on after a kill as if there had been none."""

import json

import numpy as np
import pytest
import torch

from evals.scenes import TRAINING_SEEDS
from sail_encoder import SailForCausalLM, load_chat
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
    assert torch.equal(first.pixel_values, again.pixel_values)
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.pixel_values.shape != other.pixel_values.shape or not torch.equal(
        first.pixel_values, other.pixel_values
    )


@pytest.mark.parametrize("stage", tiny_recipe.STAGES)
def test_batches_fit_their_stage(tokenizer, stage):
    batch = tiny_recipe.SceneBatches(tokenizer, 0).make(stage.until - 1)
    rows, columns = batch.grid
    assert rows * columns <= stage.patches
    assert len(batch.pixel_values) == len(batch.input_ids) * rows * columns
    patch = tokenizer.convert_tokens_to_ids("<vpatch>")
    assert (batch.input_ids == patch).sum(1).eq(rows * columns).all()


def test_answers_alone_are_learned(tokenizer):
    stage = tiny_recipe.STAGES[-1]
    scene, _ = tiny_recipe.draw_to_grid(TRAINING_SEEDS.start, (8, 8), stage)
    turns = tiny_recipe.converse(scene, np.random.default_rng(0), 4, stage.kinds)
    ids, labels = tiny_recipe.encode(tokenizer, (8, 8), turns)
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned.split("</s>")[:-1] == [f" {turn.answer}" for turn in turns]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


def short_training(monkeypatch, tokenizer):
    monkeypatch.setattr(tiny_recipe, "build_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(tiny_recipe, "TOKENS_PER_STEP", 400)
    monkeypatch.setattr(pretrain_tiny, "LOG_EVERY", 2)
    monkeypatch.setattr(pretrain_tiny, "SAVE_EVERY", 2)
    monkeypatch.setattr(pretrain_tiny, "evaluate", lambda model, tokenizer: {"caption": 0.5})


def test_whitening_gives_every_direction_its_say():
    """However much more the mean color of a patch varies than its edges, what they embed to varies alike."""
    scales = torch.tensor([30.0, 3.0, 2.0, 1.5, 1.0, 0.9])
    patches = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) * scales + 5
    embedding = torch.nn.Linear(6, 6, bias=False)
    tiny_recipe.whiten(embedding, patches)
    variances = torch.linalg.eigvalsh(torch.cov(embedding(patches).detach().T))
    assert variances.max() / variances.min() < 1.2


def test_a_resumed_training_ends_with_the_same_weights(tmp_path, monkeypatch, tokenizer):
    short_training(monkeypatch, tokenizer)
    pretrain_tiny.train(tmp_path / "whole", 4, 1e-3, 0)
    saves = []
    original = pretrain_tiny._save
    monkeypatch.setattr(pretrain_tiny, "_save", lambda *args: (original(*args), saves.append(1), killed_after_first()))

    def killed_after_first():
        if len(saves) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_tiny.train(tmp_path / "resumed", 4, 1e-3, 0)
    pretrain_tiny.train(tmp_path / "resumed", 4, 1e-3, 0)
    whole, resumed = (
        SailForCausalLM.from_pretrained(tmp_path / name / "export").state_dict() for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    summary = json.loads((tmp_path / "whole" / "export" / "training.json").read_text())
    assert summary["steps"] == 4
    assert summary["accuracy"] == {"caption": 0.5}
