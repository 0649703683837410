"""The training of sail-tiny: its data, and that it goes on after a kill as if there had been none."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.utils import ModelOutput

from evals.scene_questions import Question
from evals.scenes import TRAINING_SEEDS, draw_scene
from heads.trainer import Trainer
from sail_encoder import SailForCausalLM, load_chat
from sail_encoder.io.errors import UserError
from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.pixel_sail.questions import ANSWER
from tools import pretrain_tiny, tiny_batches, tiny_losses, tiny_recipe
from tools.tiny_losses import Student, aim_loss, loss_of

NARROW = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}

ALWAYS = {
    form: {"captions": 0.0, "masks": 0.0, "talks": 0.0} | ({} if form == "questions" else {form: 1.0})
    for form in ("captions", "masks", "talks", "questions")
}
"""Fields of a stage whose texts are all of one form."""


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_recipe.build_tokenizer()


def build_narrow(tokenizer):
    return PixelSailForCausalLM(PixelSailConfig(**{**tiny_recipe.build_config(tokenizer).to_dict(), **NARROW}))


def test_the_tokenizer_is_that_of_the_checkpoint(tokenizer):
    shipped = load_chat("sail-tiny").processor.tokenizer
    assert tokenizer.get_vocab() == shipped.get_vocab()


def test_a_batch_depends_on_its_step_alone(tokenizer):
    first = tiny_batches.SceneBatches(tokenizer, 0).make(7)
    again = next(iter(tiny_batches.SceneBatches(tokenizer, 7)))
    other = tiny_batches.SceneBatches(tokenizer, 0).make(8)
    pixels = [batch["images"]["pixel_values"] for batch in (first, again, other)]
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert pixels[0].shape != pixels[2].shape or not torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("stage", tiny_recipe.STAGES)
def test_batches_fit_their_stage(tokenizer, stage):
    batch = tiny_batches.SceneBatches(tokenizer, 0).make(stage.until - 1)
    images = batch["images"]
    rows, columns = images["image_grid_hw"][0].tolist()
    assert rows * columns <= stage.patches
    assert len(images["pixel_values"]) == len(images["input_ids"]) * rows * columns
    patch = tokenizer.convert_tokens_to_ids("<vpatch>")
    assert (images["input_ids"] == patch).sum(1).eq(rows * columns).all()
    assert batch["image_of_text"].unique().tolist() == list(range(len(images["input_ids"])))


@pytest.mark.parametrize("form", ["captions", "masks", "talks", "questions"])
def test_the_loss_is_that_of_each_text_after_its_image(tokenizer, monkeypatch, form):
    """An image that is encoded once for all its texts gives the losses that the model's own forward does."""
    monkeypatch.setattr(tiny_recipe, "TOKENS_PER_STEP", 700)
    monkeypatch.setattr(tiny_recipe, "STAGES", (replace(tiny_recipe.STAGES[-1], **ALWAYS[form]),))
    batch = tiny_batches.SceneBatches(tokenizer, 0).make(3)
    torch.manual_seed(0)
    model = build_narrow(tokenizer)
    prefixes, grids = batch["images"]["input_ids"], batch["images"]["image_grid_hw"]
    image_of_text, masks = batch["image_of_text"], batch["mask_labels"]
    masks_of_text = [mask[None] for of_image in masks for mask in of_image]
    pixels = batch["images"]["pixel_values"].unflatten(0, (len(grids), -1))
    prefix = prefixes[image_of_text]
    expected = model(
        input_ids=torch.cat((prefix, batch["input_ids"]), dim=1),
        labels=torch.cat((torch.full_like(prefix, -100), batch["labels"]), dim=1),
        pixel_values=pixels[image_of_text].flatten(0, 1),
        image_grid_hw=grids[image_of_text],
        mask_labels=masks_of_text or None,
    )
    text_loss = model.config.text_weight * (expected.text_loss if masks_of_text else expected.loss)
    assert bool(masks_of_text) == (form == "masks")
    student = Student(model)
    monkeypatch.setattr(student, "attribute_loss", lambda states, labels: torch.tensor(0.0))
    model.set_attn_implementation("eager")
    aimed = []
    monkeypatch.setattr(tiny_losses, "aim_loss", lambda *given: aimed.append(given) or torch.tensor(0.0))
    mask_loss = loss_of(student, batch, half=False) - text_loss
    # Points are drawn at random, so that losses of masks agree roughly.
    drawn = expected.mask_loss + expected.dice_loss if masks_of_text else torch.tensor(0.0)
    torch.testing.assert_close(mask_loss, drawn, rtol=0.05, atol=1e-4)
    assert bool(aimed) == (form in ("masks", "questions"))
    for _, read, *_ in aimed:
        # The keys are the tokens of the image and then those of the text.
        attention = read.attentions[tiny_losses.EARLY]
        assert attention.shape[2:] == (batch["input_ids"].shape[1], prefix.shape[1] + batch["input_ids"].shape[1])
        assert torch.all(attention[:, :, 0, prefix.shape[1] + 1 :] == 0)
        assert torch.all(attention[:, :, 0, : prefix.shape[1] + 1] > 0)


@pytest.fixture
def pair():
    """A scene of two things, of different shapes and colors."""
    scenes = (draw_scene(seed, (2,), 112, 112) for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + 99))
    return next(scene for scene in scenes if differ(scene))


def differ(scene):
    return all(len({getattr(one, name) for one in scene.things}) == 2 for name in ("shape", "color", "place"))


def aims_of(tokenizer, scene, kind, prompt, answer, targets=None):
    """What each token looks at: the text up to it, the thing that is covered, and by what it is named."""
    question = Question(prompt, answer, kind)
    meant = tiny_batches.things_named(scene, question) if targets is None else targets
    turns = [tiny_batches.Turn(prompt, answer, kind, meant)]
    text = tiny_batches.encode_text(tokenizer, turns)
    covered = tiny_batches.cover(scene, (8, 8))
    places, shares, named = tiny_batches.collect_aims(tokenizer, [(scene, covered, turns)], [text])
    things = [(covered / covered.amax(1, keepdim=True)).sub(share).abs().amax(1).argmin().item() for share in shares]
    words = [
        [
            tiny_batches.ATTRIBUTES[name][label]
            for name, label in zip(tiny_batches.NAMING, row, strict=True)
            if label >= 0
        ]
        for row in named.tolist()
    ]
    return [
        (tokenizer.decode(text[0][: place + 1]), thing, *of_token)
        for (_, place), thing, of_token in zip(places.tolist(), things, words, strict=True)
    ]


def test_the_token_before_an_answer_looks_at_what_is_named(tokenizer, pair):
    first, second = pair.things
    prompt = f"What shape is {second.color}?"
    [(before, thing, *named)] = aims_of(tokenizer, pair, "shape", prompt, second.shape)
    assert before.endswith(f"{prompt}[/INST]")
    assert (thing, named) == (1, [second.color])
    [(_, thing, *named)] = aims_of(tokenizer, pair, "exists", f"Is there a {first.name}?", "yes")
    assert (thing, named) == (0, [first.shape, first.color])
    assert aims_of(tokenizer, pair, "exists", f"Is there a {first.color} {second.shape}?", "no") == []
    assert aims_of(tokenizer, pair, "count", "How many things are there?", "two") == []


def test_each_name_of_a_comparison_looks_at_its_thing(tokenizer, pair):
    first, second = pair.things
    aims = aims_of(tokenizer, pair, "relation", f"Is the {second.name} left of the {first.name}?", "no")
    assert [thing for _, thing, *_ in aims] == [1, 0]
    assert aims[0][0].endswith(second.name)
    assert aims[1][0].endswith(first.name)


def test_a_token_that_asks_for_a_mask_looks_at_its_thing(tokenizer, pair):
    prompt = f"Please segment the {pair.things[1].texture} {pair.things[1].shape} in this image."
    [(before, thing, *named)] = aims_of(tokenizer, pair, "mask", prompt, ANSWER, targets=(1,))
    assert before.endswith("[SEG]")
    assert (thing, named) == (1, [pair.things[1].shape, pair.things[1].texture])


def test_looking_at_things_costs_less_than_looking_away(tokenizer):
    """And the rest of the image or the text are no part of them."""
    student = Student(
        PixelSailForCausalLM(PixelSailConfig(**{**tiny_recipe.build_config(tokenizer).to_dict(), **NARROW}))
    )
    states, nothing = (torch.zeros(1, 2, 64),) * 4, torch.full((1, 4), -100)
    places, shares = torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.5, 0.0]])
    losses = []
    for key in range(6):
        attention = torch.zeros(1, 4, 2, 6)
        attention[..., key] = 1.0
        read = ModelOutput(attentions=(None, None, None, attention), hidden_states=states)
        losses.append(aim_loss(student, read, places, shares, nothing).item())
    assert losses[1] == 0.0
    assert losses[2] == pytest.approx(np.log(2.0))
    assert all(losses[key] > 10 for key in (0, 3, 4, 5))


def test_answers_alone_are_learned(tokenizer):
    stage = tiny_recipe.STAGES[-1]
    scene, _ = tiny_recipe.draw_to_grid(TRAINING_SEEDS.start, (8, 8), stage)
    [turns] = tiny_batches.write_about(scene, np.random.default_rng(0), stage, "talks")
    assert len(turns) > 2
    ids, labels = tiny_batches.encode(tokenizer, (8, 8), turns)
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned.split("</s>")[:-1] == [f" {turn.answer}" for turn in turns]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


@pytest.fixture(scope="module")
def _short_training(tokenizer):
    """Steps of a few scenes and of a narrow model, since Muon takes long on a CPU without bfloat16."""
    build = tiny_recipe.build_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_recipe, "build_tokenizer", lambda: tokenizer)
        patch.setattr(
            tiny_recipe, "build_config", lambda _: PixelSailConfig(**{**build(tokenizer).to_dict(), **NARROW})
        )
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
    one, both = (json.loads((folder / "export/training.json").read_text()) for folder in (whole, tmp_path / "further"))
    assert both["steps"] == one["steps"] + 1
    assert both["images"] > one["images"]
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-7) for name in start)
    with pytest.raises(
        UserError, match=r"with other settings: learning_rate was 1e-09, now 0.001; start was [0-9a-f]+"
    ):
        pretrain_tiny.train(tmp_path / "further", 1, 1e-3, 0)
    with pytest.raises(UserError, match="nowhere holds no checkpoint to start from"):
        pretrain_tiny.train(tmp_path / "other", 1, 1e-3, 0, start=tmp_path / "nowhere")


def test_images_are_counted_without_drawing_them(tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_recipe, "TOKENS_PER_STEP", 400)
    scenes = tiny_batches.SceneBatches(tokenizer, 0)
    assert tiny_recipe.count_images(0, 3) == sum(len(scenes.make(step)["mask_labels"]) for step in range(3))
