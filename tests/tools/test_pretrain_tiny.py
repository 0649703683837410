"""The training of sail-tiny: its data, and that it goes on after a kill as if there had been none."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.utils import ModelOutput

from evals.scene_expressions import draw_thing_masks
from evals.scene_questions import CAPTION_PROMPT, Question
from evals.scenes import TRAINING_SEEDS, draw_scene
from heads.trainer import Trainer
from sail_encoder import SailForCausalLM, load_chat
from sail_encoder.io.errors import UserError
from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.pixel_sail.questions import ANSWER, NO_TARGET
from tools import pretrain_tiny, tiny_aims, tiny_batches, tiny_losses, tiny_recipe, tiny_texts
from tools.tiny_aims import Aims
from tools.tiny_losses import Student, aim_loss, loss_of
from tools.tiny_texts import Turn

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
    image_of_text, texts = batch["image_of_text"], batch["input_ids"]
    masks_of_text = batch["mask_labels"].split((texts == model.config.seg_token_id).sum(dim=1).tolist())
    has_masks = form in ("masks", "talks")
    pixels = batch["images"]["pixel_values"].unflatten(0, (len(grids), -1))
    prefix = prefixes[image_of_text]
    expected = model(
        input_ids=torch.cat((prefix, texts), dim=1),
        labels=torch.cat((torch.full_like(prefix, -100), batch["labels"]), dim=1),
        pixel_values=pixels[image_of_text].flatten(0, 1),
        image_grid_hw=grids[image_of_text],
        mask_labels=list(masks_of_text) if has_masks else None,
    )
    text_loss = model.config.text_weight * (expected.text_loss if has_masks else expected.loss)
    assert bool(len(batch["mask_labels"])) == has_masks
    student = Student(model)
    monkeypatch.setattr(student, "attribute_loss", lambda states, labels: torch.tensor(0.0))
    model.set_attn_implementation("eager")
    aimed = []
    monkeypatch.setattr(tiny_losses, "aim_loss", lambda *given: aimed.append(given) or torch.tensor(0.0))
    mask_loss = loss_of(student, batch, half=False) - text_loss
    # Points are drawn at random, so that losses of masks agree roughly.
    drawn = expected.mask_loss + expected.dice_loss if has_masks else torch.tensor(0.0)
    torch.testing.assert_close(mask_loss, drawn, rtol=0.05, atol=1e-4)
    [(_, read, _)] = aimed
    # The keys are the tokens of the image and then those of the text.
    attention = read.attentions[tiny_losses.EARLY]
    assert attention.shape[2:] == (texts.shape[1], prefix.shape[1] + texts.shape[1])
    assert torch.all(attention[:, :, 0, prefix.shape[1] + 1 :] == 0)
    assert torch.all(attention[:, :, 0, : prefix.shape[1] + 1] > 0)


@pytest.fixture
def pair():
    """A scene of two things, of different shapes and colors."""
    scenes = (draw_scene(seed, (2,), 112, 112) for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + 99))
    return next(scene for scene in scenes if differ(scene))


def differ(scene):
    return all(len({getattr(one, name) for one in scene.things}) == 2 for name in ("shape", "color", "place"))


def aims_of(tokenizer, scene, *turns):
    """What each token looks at: the text up to it, which things it sees, and by what they are named."""
    text = tiny_texts.encode_text(tokenizer, turns)
    covered = tiny_batches.cover(scene, (8, 8))
    rng = np.random.default_rng(0)
    aims = tiny_aims.collect_aims(tokenizer, [(scene, covered, turns)], [text], rng)
    # A thing is looked at where its patches are so more than others; those at its edge show the background too.
    things = [
        [number for number, share in enumerate(covered) if (share * seen).sum() / share.sum() > seen.mean()]
        for seen in aims.shares
    ]
    words = [
        [names[label] for names, label in zip(tiny_aims.NAMING.values(), row, strict=True) if label >= 0]
        for row in aims.named.tolist()
    ]
    return [
        (tokenizer.decode(text[0][: place + 1]), *seen_and_named)
        for (_, place), *seen_and_named in zip(aims.places.tolist(), things, words, strict=True)
    ]


def turn_about(scene, kind, prompt, answer):
    question = Question(prompt, answer, kind)
    things = tiny_texts.things_named(scene, question)
    return Turn(prompt, answer, kind, *(((), things) if kind == "relation" else (things,)))


def test_the_token_before_an_answer_looks_at_what_is_named(tokenizer, pair):
    first, second = pair.things
    prompt = f"What shape is {second.color}?"
    [(before, *found)] = aims_of(tokenizer, pair, turn_about(pair, "shape", prompt, second.shape))
    assert before.endswith(f"{prompt}[/INST]")
    assert found == [[1], [second.color]]
    [(_, *found)] = aims_of(tokenizer, pair, turn_about(pair, "exists", f"Is there a {first.name}?", "yes"))
    assert found == [[0], [first.shape, first.color]]
    assert aims_of(tokenizer, pair, turn_about(pair, "count", "How many things are there?", "two")) == []


def test_what_is_not_there_is_looked_for_where_no_thing_is(tokenizer, pair):
    first, second = pair.things
    absent = turn_about(pair, "exists", f"Is there a {first.color} {second.shape}?", "no")
    [(before, *found)] = aims_of(tokenizer, pair, absent)
    assert before.endswith("?[/INST]")
    assert found == [[], [second.shape, first.color]]
    nothing = Turn(f"Please segment the {first.color} {second.shape} in this image.", NO_TARGET, "mask")
    [(before, *found)] = aims_of(tokenizer, pair, nothing)
    assert before.endswith("image.[/INST]")
    assert found == [[], [second.shape, first.color]]


def test_each_name_of_a_comparison_looks_at_its_thing(tokenizer, pair):
    first, second = pair.things
    compared = turn_about(pair, "relation", f"Is the {second.name} left of the {first.name}?", "no")
    aims = aims_of(tokenizer, pair, compared)
    assert [things for _, things, _ in aims] == [[1], [0]]
    assert aims[0][0].endswith(second.name)
    assert aims[1][0].endswith(first.name)
    expression = Turn(f"Please segment the thing above the {first.name} in this image.", ANSWER, "mask", (1,), (0,))
    [(before, *found)] = aims_of(tokenizer, pair, expression)
    assert before.endswith(f"above the {first.name}")
    assert found == [[0], [first.shape, first.color]]


def test_a_token_that_asks_for_a_mask_looks_at_its_thing(tokenizer, pair):
    prompt = f"Please segment the {pair.things[1].texture} {pair.things[1].shape} in this image."
    aims = aims_of(tokenizer, pair, Turn(prompt, ANSWER, "mask", (1,)))
    for (before, *found), end in zip(aims, ("[/INST]", "[SEG]"), strict=True):
        assert before.endswith(end)
        assert found == [[1], [pair.things[1].shape, pair.things[1].texture]]


def test_a_caption_looks_at_each_thing_in_turn(tokenizer, pair):
    first = pair.things[0]
    aims = aims_of(tokenizer, pair, Turn(CAPTION_PROMPT, pair.caption, "caption"))
    assert [found for _, *found in aims] == [[[0], []], [[1], []]]
    assert aims[0][0].split("[/INST]")[1].strip() in f"{first.description} and"
    assert f"{first.description} and" in aims[1][0]


def test_every_turn_of_a_conversation_looks(tokenizer, pair):
    first, second = pair.things
    turns = [
        turn_about(pair, "color", f"What color is the {shape}?", color)
        for shape, color in ((second.shape, second.color), (first.shape, first.color))
    ]
    aims = aims_of(tokenizer, pair, *turns)
    assert [found for _, *found in aims] == [[[1], [second.shape]], [[0], [first.shape]]]
    assert [before.count("[/INST]") for before, *_ in aims] == [1, 2]


def test_looking_at_things_costs_less_than_looking_away(tokenizer):
    """And the rest of the image or the text are no part of them."""
    student = Student(build_narrow(tokenizer))
    states = (torch.zeros(1, 2, 64),) * 6
    nothing = torch.full((1, len(tiny_aims.NAMING)), -100), torch.full((1, len(tiny_aims.ATTRIBUTES)), -100)
    aims = Aims(torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.5, 0.0]]), *nothing)
    losses = []
    for key in range(6):
        attention = torch.zeros(1, 4, 2, 6)
        attention[..., key] = 1.0
        read = ModelOutput(attentions=(None, None, None, attention), hidden_states=states)
        losses.append(aim_loss(student, read, aims).item())
    assert losses[1] == 0.0
    assert losses[2] == pytest.approx(np.log(2.0))
    assert all(losses[key] > 10 for key in (0, 3, 4, 5))


def test_what_is_named_is_known_before_looking_and_what_is_seen_after_it(tokenizer):
    student = Student(build_narrow(tokenizer))
    torch.manual_seed(0)
    red, circle = torch.randn(2, 64)
    with torch.no_grad():
        for head, label, state in ((student.attributes[1], 0, red), (student.attributes[0], 0, circle)):
            head.weight[label], head.bias[:] = state, 0
    attention = torch.zeros(1, 4, 2, 6)
    attention[..., 1] = 1.0
    seen = [0, -100, -100, -100, -100, -100]
    aims = Aims(
        torch.tensor([[0, 1]]),
        torch.ones(1, 3),
        torch.tensor([[-100, 0, -100, -100]]),
        torch.tensor([seen]),
    )

    def loss(before, after):
        states = [torch.zeros(1, 2, 64) for _ in range(6)]
        states[tiny_losses.EARLY][0, 1], states[tiny_losses.EARLY + 1][0, 1] = before, after
        read = ModelOutput(attentions=(None, None, None, attention), hidden_states=states)
        return aim_loss(student, read, aims).item()

    assert loss(red, circle) < 0.01
    assert loss(red, -circle) > 1
    assert loss(-red, circle) > 1


def write_talks(stage, count=40):
    for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + count):
        scene, _ = tiny_recipe.draw_to_grid(seed, (8, 8), stage)
        [turns] = tiny_texts.write_about(scene, np.random.default_rng(seed), stage, "talks")
        yield scene, turns


def test_answers_alone_are_learned(tokenizer):
    _, turns = next(write_talks(tiny_recipe.STAGES[-1]))
    assert len(turns) > 2
    ids, labels = tiny_texts.encode(tokenizer, (8, 8), turns)
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned.replace(" ", "").split("</s>")[:-1] == [turn.answer.replace(" ", "") for turn in turns]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))


def test_conversations_hold_masks_and_captions_in_any_place():
    talks = [turns for _, turns in write_talks(tiny_recipe.STAGES[-1])]
    places = [[turn.kind for turn in turns].index("caption") for turns in talks if "caption" in [t.kind for t in turns]]
    assert 0 < sum(place == 0 for place in places) < len(places) < len(talks)
    answers = [turn.answer for turns in talks for turn in turns if turn.kind == "mask"]
    assert set(answers) == {ANSWER, NO_TARGET}


def test_masks_are_those_of_the_expressions():
    for scene, turns in write_talks(tiny_recipe.STAGES[-1], 10):
        meant = [turn.targets for turn in turns if turn.kind == "mask" and turn.targets]
        masks = tiny_batches.masks_of(scene, [turns], (8, 8))
        assert masks.shape == (len(meant), 112, 112)
        drawn = torch.from_numpy(draw_thing_masks(scene)).float()
        stretched = torch.nn.functional.interpolate(drawn[None], (112, 112), mode="bilinear")[0]
        for mask, things in zip(masks, meant, strict=True):
            inside = stretched[list(things)].sum(dim=0)
            assert mask[inside > 0.99].all()
            assert not mask[inside < 0.01].any()


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
    assert tiny_recipe.count_images(0, 3) == sum(len(scenes.make(step)["masks_of_image"]) for step in range(3))
