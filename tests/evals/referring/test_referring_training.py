"""`sail segment train --head referring` and `sail segment eval`: a Pixel-SAIL that is trained, resumed and scored."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evals.referring.batches import ReferringBatches
from evals.referring.data import open_splits
from evals.referring.options import ReferringOptions, recipe_of
from evals.referring.run import ReferringRun
from evals.referring.scores import score_expressions
from evals.scene_expressions import Expression
from evals.segmentation.options import TrainOptions
from heads.referring import build_pixel_sail
from heads.trainer import read_log
from sail_cli import main
from sail_encoder import PixelSailForCausalLM, PixelSailProcessor, load_backbone, load_chat
from sail_encoder.chat import conversation
from sail_encoder.chat.engine import Answer
from sail_encoder.models.pixel_sail.questions import ANSWER, refer
from sail_encoder.models.sail.modeling_sail import SailMLP

OPTIONS = ["--head", "referring", "--steps", "12", "--batch_size", "2", "--warmup", "2", "--log_every", "3"]
HEAD = {"mask_channels": 8, "head_channels": 8, "train_num_points": 64, "expressions": 2}


def train(data, out, model, *more, **head):
    options = json.dumps({**HEAD, **head})
    return [
        "segment",
        "train",
        str(data),
        "--out",
        str(out),
        "--model",
        model,
        *OPTIONS,
        "--head_options",
        options,
        *more,
    ]


@pytest.fixture(scope="module")
def trained(grefcoco, sail, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert main(train(grefcoco[0], out, sail)) == 0
    return out


def complaint(capsys, command):
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sail: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_folder_is_a_pixel_sail(trained, grefcoco, tmp_path):
    model = PixelSailForCausalLM.from_pretrained(trained)
    assert model.config.mask_channels == 8
    assert isinstance(PixelSailProcessor.from_pretrained(trained), PixelSailProcessor)
    image = next((grefcoco[0] / "images").glob("*.jpg"))
    answer = load_chat(str(trained)).ask(" Please segment the ball in this image.", image)
    assert answer.count("[SEG]") == len(answer.masks)
    assert load_backbone(str(trained)).encode([image])[0].grid.shape[-1] == 64
    log = read_log(trained / "log.jsonl")
    assert [line["step"] for line in log] == [3, 6, 9, 12]
    assert log[-1]["loss"] < log[0]["loss"]


def test_its_report(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["scores"]["val"]["expressions"] == 8
    assert {"cIoU", "gIoU", "N-acc", "T-acc"} < results["scores"]["val"].keys()
    report = (trained / "results.md").read_text()
    for fact in (
        "cIoU %",
        "grefs(unc).json, train: 3 images",
        "12 of 2 images, up to 2 expressions each",
        "adamw, poly",
    ):
        assert fact in report


def test_killed_and_resumed_is_as_uninterrupted(trained, grefcoco, sail, tmp_path):
    """Killed at a random time: weights, points of the losses and order of the data go on exactly."""
    command = train(grefcoco[0], tmp_path, sail, "--save_every", "2")
    process = subprocess.Popen([sys.executable, "-m", "sail_cli", *command], stderr=subprocess.DEVNULL)
    log, lines = tmp_path / "log.jsonl", random.Random().randint(1, 3)
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, f"killed after {lines} lines of the log"
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < 12
    assert main(command) == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path, trained))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    scores = [json.loads((folder / "results.json").read_text())["scores"] for folder in (tmp_path, trained)]
    assert scores[0] == scores[1]
    assert [line["step"] for line in read_log(log)] == [3, 6, 9, 12]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(refcoco, sail, tmp_path, capsys, monkeypatch):
    def refuse(self, folder):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    command = train(refcoco[0], tmp_path, sail, "--steps", "3")
    with monkeypatch.context() as patch:
        patch.setattr(PixelSailForCausalLM, "save_pretrained", refuse)
        assert "No space left on device" in complaint(capsys, command)
    assert main(command) == 0
    assert PixelSailForCausalLM.from_pretrained(tmp_path)


def test_a_finished_run_is_not_trained_again(trained, grefcoco, sail):
    stamp = (trained / "checkpoint.pt").stat().st_mtime_ns
    assert main(train(grefcoco[0], trained, sail)) == 0
    assert (trained / "checkpoint.pt").stat().st_mtime_ns == stamp


def test_scores_of_a_folder(trained, grefcoco, refcoco, tmp_path, capsys):
    results = json.loads((trained / "results.json").read_text())
    out = tmp_path / "scores"
    command = ["segment", "eval", str(grefcoco[0]), "--head", str(trained), "--out", str(out), "--split", "all"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())["scores"]
    assert list(found) == ["val", "testA", "testB"]
    assert found["val"] == results["scores"]["val"]
    assert "| testB" in printed
    assert main(["segment", "eval", str(refcoco[0]), "--head", str(trained), "--split", "testA"]) == 0
    assert "N-acc" not in capsys.readouterr().out


def test_answers_are_compared_with_their_own_masks(trained, grefcoco, monkeypatch):
    """A model that finds everything, each mask in two halves, scores one."""
    val = open_splits(str(grefcoco[0]), "val")["val"]
    expected = [mask for index in range(len(val)) for mask in val.read(index)[2]]
    upper = np.indices(expected[0].shape)[0] < 25

    def answer(chats, prompts, sampling):
        masks = [expected.pop(0) for _ in prompts]
        return [Answer("", np.stack((mask & upper, mask & ~upper)) if mask.any() else mask[None][:0]) for mask in masks]

    monkeypatch.setattr(conversation, "ask_together", answer)
    scores = score_expressions(load_chat(str(trained)), val, "val")["val"].as_dict()
    assert [scores[name] for name in ("cIoU", "gIoU", "N-acc", "T-acc")] == [1, 1, 1, 1]
    assert not expected


class Said:
    """A target without pixels, one that is not there, and two that are."""

    def __len__(self):
        return 1

    def read(self, index):
        masks = np.zeros((4, 28, 28), bool)
        masks[2, :14] = masks[3, 14:] = True
        said = [("a", (1,), "color"), ("b", (), "absent"), ("c", (2,), "color"), ("d", (3,), "shape")]
        return Image.new("RGB", (28, 28)), [Expression(*one) for one in said], masks


def test_annotations_say_what_has_a_target_and_kinds_have_scores_of_their_own(trained, monkeypatch):
    masks = [*np.zeros((2, 0, 28, 28), bool), *np.ones((2, 1, 28, 28), bool)]
    monkeypatch.setattr(conversation, "ask_together", lambda *_: [Answer("", one) for one in masks])
    scores = score_expressions(load_chat(str(trained)), Said(), "val")
    assert {name: (len(one.present), len(one.absent)) for name, one in scores.items()} == {
        "val": (3, 1),
        "val: color": (2, 0),
        "val: absent": (0, 1),
        "val: shape": (1, 0),
    }
    assert [scores[f"val: {kind}"].as_dict()["gIoU"] for kind in ("color", "absent", "shape")] == [0.25, 1, 0.5]


def test_batches(grefcoco, sail):
    """Only answers are learned; each `[SEG]` has a mask; any batch is known without those before it."""
    model, processor = build_pixel_sail(sail, None, mask_channels=8)
    data = open_splits(str(grefcoco[0]), "train")["train"]
    batches = ReferringBatches(data, processor, 2, 3, seed=0)
    first, second = batches.between(0, 2)
    [again] = batches.between(1, 2)
    assert torch.equal(again["input_ids"], second["input_ids"])
    assert all(map(torch.equal, again["mask_labels"], second["mask_labels"]))
    for batch in (first, second):
        for ids, labels, masks in zip(batch["input_ids"], batch["labels"], batch["mask_labels"], strict=True):
            said = processor.decode(labels[labels != -100]).replace(" ", "").split("</s>")[:-1]
            assert len(said) == 3
            assert set(said) <= {"Itis[SEG].", "Thereisnone."}
            assert (ids == model.config.seg_token_id).sum() == len(masks) == said.count("Itis[SEG].")
            assert processor.decode(ids).count("Please segment") == 3
    assert model(**first).mask_logits


def test_each_mask_is_that_of_its_expression(grefcoco, sail):
    _, processor = build_pixel_sail(sail, None, mask_channels=8)
    data = open_splits(str(grefcoco[0]), "train")["train"]
    batches = ReferringBatches(data, processor, 2, 4, seed=0)
    known = [
        dict(zip([one.text for one in data.read(index)[1]], data.read(index)[2], strict=True)) for index in (0, 1, 2)
    ]
    orders = set()
    for position in range(6):
        _, turns, masks = batches.make(position)
        said = known[batches.sampler.draw(position)[0]]
        texts = [text for text in said for question, answer in turns if question == refer(text) and answer == ANSWER]
        asked = [text for question, answer in turns if answer == ANSWER for text in said if refer(text) == question]
        orders.add(tuple(sorted(texts).index(text) for text in asked))
        assert len(asked) == len(masks) == 3
        assert all(np.array_equal(said[text], mask) for text, mask in zip(asked, masks, strict=True))
    assert len(orders) > 1


def test_an_expression_with_an_empty_mask_is_not_said_to_mean_nothing(refcoco, sail, tmp_path):
    """A polygon outside the image; its annotation says that there is something."""
    folder = shutil.copytree(refcoco[0], tmp_path / "copy")
    instances = json.loads((folder / "instances.json").read_text())
    for one in instances["annotations"]:
        one["segmentation"] = [[900, 900, 950, 900, 950, 950]]
    (folder / "instances.json").write_text(json.dumps(instances))
    _, processor = build_pixel_sail(sail, None, mask_channels=8)
    batches = ReferringBatches(open_splits(str(folder), "train")["train"], processor, 2, 4, seed=0)
    _, turns, masks = batches.make(0)
    assert {answer for _, answer in turns} == {ANSWER}
    assert masks.shape == (2, 60, 80)
    assert not masks.any()


def test_scores_while_training(trained, grefcoco, sail, tmp_path):
    """They are in the log, and do not change what is learned."""
    assert main(train(grefcoco[0], tmp_path, sail, "--validate_every", "5")) == 0
    lines = [line for line in read_log(tmp_path / "log.jsonl") if "cIoU" in line]
    assert [line["step"] for line in lines] == [5, 10]
    assert all(0 <= line["gIoU"] <= 1 for line in lines)
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path, trained))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_adapters(grefcoco, sail, tmp_path):
    """With LoRA the blocks change by a low rank, what is new is trained, and the result has no trace of PEFT."""
    pytest.importorskip("peft")
    out = tmp_path / "run"
    assert main(train(grefcoco[0], out, sail, lora=2)) == 0
    before, after = load_file(f"{sail}/model.safetensors"), load_file(out / "model.safetensors")
    assert not any("lora" in name for name in after)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) == 2
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(after[name], before[name])
    rows = len(before["lm_head.weight"])
    assert not torch.equal(after["lm_head.weight"][:rows], before["lm_head.weight"])
    assert PixelSailForCausalLM.from_pretrained(out)


def test_going_on_with_a_pixel_sail(trained, refcoco, tmp_path, capsys):
    assert main(train(refcoco[0], tmp_path / "more", str(trained), "--steps", "3")) == 0
    assert "8 mask_channels, not 16" in complaint(
        capsys, train(refcoco[0], tmp_path / "wider", str(trained), mask_channels=16)
    )


def test_less_memory_for_the_same_weights(grefcoco, trained, sail, tmp_path, monkeypatch):
    """Blocks run twice per step."""
    counts, forward = [], SailMLP.forward
    monkeypatch.setattr(SailMLP, "forward", lambda self, hidden: counts.append(self.training) or forward(self, hidden))
    assert main(train(grefcoco[0], tmp_path, sail, gradient_checkpointing=True)) == 0
    assert sum(counts) == 2 * 12 * 2, "two blocks, twelve steps, and both passes"
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path, trained))
    assert max((one[name] - other[name]).abs().max() for name in one) < 1e-4


def test_bfloat16(refcoco, sail, tmp_path, monkeypatch):
    """Weights are float32 in training, and computations bfloat16, also where it is scored meanwhile."""
    seen, forward = set(), SailMLP.forward

    def note(self, hidden):
        output = forward(self, hidden)
        seen.add((self.training, self.up_proj.weight.dtype, output.dtype))
        return output

    monkeypatch.setattr(SailMLP, "forward", note)
    options = ("--precision", "bfloat16", "--steps", "3", "--validate_every", "1")
    assert main(train(refcoco[0], tmp_path, sail, *options)) == 0
    wide, narrow = torch.float32, torch.bfloat16
    assert seen == {(True, wide, narrow), (False, wide, narrow), (False, narrow, narrow)}
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_other_settings_and_folders_of_others_are_refused(trained, grefcoco, sail, tmp_path, capsys):
    line = complaint(capsys, train(grefcoco[0], trained, sail, "--seed", "1"))
    assert "seed was 0, now 1; use another --out or --overwrite true" in line
    assert "expressions was 2, now 1" in complaint(capsys, train(grefcoco[0], trained, sail, expressions=1))
    (tmp_path / "config.json").write_text("{}")
    for more in ((), ("--overwrite",)):
        line = complaint(capsys, train(grefcoco[0], tmp_path, sail, *more))
        assert "has config.json and no run.json, so it is no run of sail segment train --head referring" in line
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_model_that_has_changed_in_its_folder_is_another(trained, grefcoco, sail, tmp_path, capsys):
    model, out = (shutil.copytree(folder, tmp_path / folder.name) for folder in (Path(sail), trained))
    run = json.loads((out / "run.json").read_text())
    run["settings"]["model"] = str(model)
    (out / "run.json").write_text(json.dumps(run))
    assert "steps was 12, now 13" in complaint(capsys, train(grefcoco[0], out, str(model), "--steps", "13"))
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["lm_head.weight"] + 1}, model / "model.safetensors")
    assert "weights was " in complaint(capsys, train(grefcoco[0], out, str(model)))


def test_a_model_is_not_overwritten_by_its_own_training(trained, grefcoco, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    before = (folder / "model.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(folder)
    for model in (folder, tmp_path / "link"):
        line = complaint(capsys, train(grefcoco[0], folder, str(model), "--overwrite"))
        assert f"--out and --model are both {model}, which would be overwritten; use another --out" in line
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_recipe_is_what_was_asked_for():
    asked = {"steps": 40, "batch_size": 3, "learning_rate": 0.5, "weight_decay": 0.1, "schedule": "cosine", "warmup": 4}
    recipe = recipe_of(TrainOptions(data="d", out="o", **asked), ReferringOptions(clip=0.25))
    assert (recipe.clip, recipe.all_steps, recipe.batch_size, recipe.weight_decay) == (0.25, 40, 3, 0.1)
    assert [recipe.factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert recipe.learning_rates == (0.5,)
    assert recipe.schedule == "cosine"


def test_no_earlier_model_lies_beside_a_run_that_was_stopped(trained, grefcoco, sail, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "model-00001-of-00002.safetensors").write_text("a part")
    monkeypatch.setattr(ReferringRun, "learn", lambda *_: 130)
    assert main(train(grefcoco[0], folder, sail, "--overwrite")) == 130
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_overwriting_leaves_other_files(refcoco, sail, tmp_path):
    command = train(refcoco[0], tmp_path, sail, "--steps", "3")
    assert main(command) == 0
    mine = ("notes.txt", "model.safetensors.bak", "model_best.safetensors", "model-old.safetensors")
    for name in mine:
        (tmp_path / name).write_text("mine")
    before = load_file(tmp_path / "model.safetensors")
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    after = load_file(tmp_path / "model.safetensors")
    assert not torch.equal(
        before["mask_head.upsample_blocks.0.0.weight"], after["mask_head.upsample_blocks.0.0.weight"]
    )


@pytest.mark.parametrize(
    ("more", "head", "message"),
    [
        (["--layers", "all"], {}, "--layers has no effect with --head referring"),
        (["--max_tokens", "0"], {}, "--max_tokens cannot be 0"),
        (["--mode", "cached"], {}, "--mode has no effect with --head referring"),
        (["--flip"], {}, "--flip has no effect with --head referring"),
        (["--no-flip"], {}, "--flip has no effect with --head referring"),
        (["--layers", "-1"], {}, "--layers has no effect with --head referring"),
        ([], {"dropout": 0.1}, "--head_options of referring has no dropout; it has mask_channels"),
        ([], {"head_channels": 128}, "head_channels cannot be 128; "),
        ([], {"lora": -1}, "--head_options of referring: lora"),
        ([], {"expressions": "two"}, "--head_options of referring: expressions is 'two'"),
        (["--precision", "float16"], {}, "--precision float16 is too narrow"),
        (["--model", "raw/14"], {}, "raw/14 has no language model"),
        (["--model", "nothing"], {}, "no model 'nothing'"),
    ],
)
def test_mistakes_are_one_line(refcoco, sail, tmp_path, capsys, more, head, message):
    assert message in complaint(capsys, train(refcoco[0], tmp_path / "out", sail, *more, **head))
    assert not (tmp_path / "out").exists()


def test_commands_that_do_not_fit_are_told(trained, grefcoco, tmp_path, capsys):
    data = str(grefcoco[0])
    evaluate = ["segment", "eval", data, "--head", str(trained)]
    assert "--window has no effect on" in complaint(capsys, [*evaluate, "--window", "56"])
    assert "--overlays has no effect on" in complaint(capsys, [*evaluate, "--overlays", "3"])
    assert "--check has no effect on" in complaint(capsys, [*evaluate, "--no-check"])
    assert "has no split 'test'; it has train, val, testA" in complaint(capsys, [*evaluate, "--split", "test"])
    assert "use --head referring" in complaint(
        capsys, ["segment", "train", "scenes-referring", "--out", str(tmp_path / "a")]
    )
    assert "--split testA is one of referring expressions" in complaint(
        capsys, ["segment", "eval", data, "--head", str(tmp_path), "--split", "testA"]
    )


def test_mistakes_come_before_heavy_imports(refcoco, tmp_path):
    check = (
        "import sys; from sail_cli import main; status = main(sys.argv[1:]); "
        "assert status == 2; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    for more in (["--layers", "all"], ["--head_options", '{"lora": -1}']):
        command = ["segment", "train", str(refcoco[0]), "--head", "referring", "--out", str(tmp_path / "out"), *more]
        subprocess.run([sys.executable, "-c", check, *command], check=True, capture_output=True)
