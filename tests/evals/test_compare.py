"""`sail compare` from end to end, on two backbones that run in milliseconds."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from segmentation.drawn_data import write_data

import evals.compare
import evals.probing
from evals.compare import measure_speed
from evals.compare_options import name_models
from evals.datasets.loading import load_dataset
from sail_cli import main
from sail_encoder.backbones.raw import RawPatches
from sail_encoder.backbones.registry import load_backbone
from sail_encoder.backbones.sail import SailVisionBackbone
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.resizing import Resize
from sail_encoder.io.errors import UserError
from sail_encoder.pictures.bars import draw_bars, format_number

FAST = ["--probes", "{logistic: {C: [0.1, 1.0, 10.0]}, knn: {k: [1, 3, 5]}}", "--resize", "56", "--crop", "28"]
FAST += ["--steps", "8", "--batch_size", "4", "--learning_rate", "0.01", "--pictures", "2"]


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return str(write_data(tmp_path_factory.mktemp("masks"), train=6, val=3))


@pytest.fixture
def command(pets, masks, small_checkpoint, tmp_path):
    """A comparison in a folder, and the folder."""
    out = tmp_path / "out"
    models = f"{small_checkpoint},raw/14"
    return ["compare", str(pets), "--models", models, "--masks", masks, "--out", str(out), *FAST], out


def compared(out):
    return {one["model"]: one for one in json.loads((out / "results.json").read_text())["models"]}


def test_a_comparison(command, small_checkpoint, capsys):
    arguments, out = command
    assert main([*arguments, "--latex"]) == 0
    table = capsys.readouterr().out
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert header == [
        *("model", "parameters", "tokens/image", "images/s"),
        *("logistic top1 %", "knn top1 %", "mIoU %"),
    ]
    found = compared(out)
    spec = load_backbone(str(small_checkpoint)).spec
    names = (str(small_checkpoint), "raw/14")
    for row, name, parameters in zip(rows, names, (spec.parameters(), 0), strict=True):
        one = found[name]
        assert (one["tokens_per_image"], one["parameters"]) == (16, parameters)
        assert one["images_per_second"] > 0
        assert one["features"]["weights"]
        for column, probe in ((4, "logistic"), (5, "knn")):
            assert row[column].rstrip("*") == f"{100 * one['probes'][probe]['mean']:.1f}"
            assert 0 <= one["probes"][probe]["mean"] <= 1
        assert row[6] == f"{100 * one['mIoU']:.1f}"
    assert found["raw/14"]["probes"]["logistic"]["mean"] > 0.9, "the pets are told apart by their color"
    with Image.open(out / "chart.png") as chart, Image.open(out / "pca.png") as sheet:
        assert chart.width > chart.height
        # Two images, each beside two models.
        assert sheet.width > sheet.height > 100
    text = (out / "results.md").read_text()
    assert text.startswith(table.strip())
    for part in (
        "- data: pets",
        "- masks: ",
        "dense head: linear, cached features, crops of 28 pixels, 8 steps of 4, ",
        "- images/s: forward passes of 12 images that were read before, the fastest of 3, float32 on cpu",
        "- date: ",
        "rate 0.01",
        "pixels 56x56",
    ):
        assert part in text
    assert "\\begin{tabular}{lrrrrrr}" in (out / "results.tex").read_text()


def test_it_goes_on_where_it_was_stopped(command, monkeypatch, capsys):
    arguments, out = command
    assert main(arguments) == 0
    whole = compared(out)
    shutil.rmtree(out)
    original, trained = evals.compare.train_head, []

    def stop_at_second(request, *rest):
        trained.append(request.model)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(request, *rest)

    monkeypatch.setattr(evals.compare, "train_head", stop_at_second)
    assert main(arguments) == 130
    assert not (out / "results.json").exists()
    fitted = []
    fit = evals.probing.ProbeRun._fit
    monkeypatch.setattr(evals.probing.ProbeRun, "_fit", lambda self, *a: (fitted.append(a[0]), fit(self, *a))[1])
    assert main(arguments) == 0
    assert trained[2:] == ["raw/14"]
    assert not fitted, "all probes were there"
    again = compared(out)
    for name, one in whole.items():
        assert again[name]["mIoU"] == one["mIoU"]
        assert {probe: found["mean"] for probe, found in again[name]["probes"].items()} == {
            probe: found["mean"] for probe, found in one["probes"].items()
        }


def test_a_second_run_computes_what_is_new_alone(command, small_checkpoint, monkeypatch):
    arguments, out = command
    first = [str(small_checkpoint) if word.endswith(",raw/14") else word for word in arguments]
    assert main(first) == 0
    before = (out / "results.json").read_text()
    forwards, trained = [], []
    forward, train = SailVisionBackbone.forward, evals.compare.train_head
    monkeypatch.setattr(SailVisionBackbone, "forward", lambda *a, **k: (forwards.append(1), forward(*a, **k))[1])
    monkeypatch.setattr(
        evals.compare, "train_head", lambda request, *a: (trained.append(request.model), train(request, *a))[1]
    )
    assert main(first) == 0
    assert (out / "results.json").read_text() == before
    assert len(forwards) == 1, "only the images of the sheet are encoded again"
    assert not trained
    assert main(arguments) == 0
    assert trained == ["raw/14"]
    assert compared(out)[str(small_checkpoint)] == json.loads(before)["models"][0]


def test_without_masks_there_is_no_dense_head(pets, tmp_path, capsys):
    out = tmp_path / "out"
    fast = ["--probes", "knn", "--resize", "28"]
    assert main(["compare", str(pets), "--models", "raw/14,raw/28", "--out", str(out), *fast]) == 0
    assert "mIoU" not in capsys.readouterr().out
    assert compared(out)["raw/28"]["mIoU"] is None
    assert compared(out)["raw/28"]["tokens_per_image"] == 1


def test_random_weights_are_those_of_the_model_that_is_named(pets, small_checkpoint, tmp_path, capsys):
    out, copy = tmp_path / "out", tmp_path / "copy"
    shutil.copytree(small_checkpoint, copy)
    models = ["--models", f"{small_checkpoint},{copy}", "--random-weights", str(copy)]
    assert main(["compare", str(pets), *models, "--out", str(out), "--probes", "knn", "--resize", "28"]) == 0
    assert f"{copy}, random weights" in capsys.readouterr().out
    weights = [one["features"]["weights"] for one in compared(out).values()]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "raw/14,sail-tny"], "no model 'sail-tny'"),
        (["--models", "raw/14,raw/14"], "--models names raw/14 twice; leave one of them out"),
        (["--models", " , "], "no model was named; give some as --models sail-tiny,raw/14"),
        (
            ["--models", "sail-tiny,raw/14", "--random-weights", "sail-tinny"],
            "--random_weights names sail-tinny, which is none of --models sail-tiny,raw/14, did you mean 'sail-tiny'?",
        ),
        (["--models", "raw/14", "--random-weights", "raw/14"], "--random-weights has no effect on raw/14"),
        (["--models", "raw/14", "--pictures", "0"], "--pictures cannot be 0; allowed is 1 or more"),
        (["--models", "raw/14", "--layout", "ade20k"], "--layout ade20k has no effect without --masks"),
        (["--models", "raw/14", "--layers", "3"], "has -1 to 0"),
        (["--models", "raw/14", "--pool", "cls"], "--pool cls reads a class token, but raw/14 has none"),
        (["--models", "raw/14", "--masks", "nowhere"], "nowhere"),
        (["--models", "raw/14,raw/16", "--masks", "scenes", "--crop", "56"], "--crop: resize 56x56 is not a multiple"),
        (["--models", "raw/14", "--masks", "scenes", "--head", "lin"], "lin"),
        (["--models", "raw/14", "--masks", "scenes", "--steps", "0"], "--steps cannot be 0"),
        (["--models", "raw/14", "--probes", "kn"], "kn"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(options, message, pets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(pets), "--out", "out", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sail: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_results_of_another_command_are_not_overwritten(pets, tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    command = ["compare", str(pets), "--models", "raw/14", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "has results.json and no run.json, so it is no comparison" in capsys.readouterr().err
    (tmp_path / "run.json").write_text(json.dumps({"command": "extract", "format": 2, "settings": {}}))
    assert main(command) == 2
    assert "is of sail extract, so it is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == "{}"


def test_names_of_models():
    assert name_models("a, b,c", "b") == {"a": False, "b": True, "c": False}
    with pytest.raises(UserError, match="names a twice"):
        name_models("a,b,a", None)


def test_settings_that_ship_for_the_data_are_read_unless_others_are_given(capsys):
    def settings(*arguments):
        with pytest.raises(SystemExit):
            main(["compare", *arguments, "--models", "raw/14", "--print_config"])
        return capsys.readouterr()

    shipped = settings("scenes")
    assert "masks: scenes-several" in shipped.out
    assert "out: runs/compare-scenes" in shipped.out
    assert "configs/compare/scenes.yaml" in shipped.err
    given = settings("scenes", "--steps", "3", "--out", "elsewhere")
    assert re.search("^steps: 3$", given.out, re.MULTILINE)
    assert re.search("^out: elsewhere$", given.out, re.MULTILINE)
    other = settings("scenes", "--out", "x", "--config", "compare/scenes")
    assert "unless they are given" not in other.err
    assert "masks: null" in settings("digits", "--out", "x").out


def test_speed_counts_tokens_and_leaves_out_what_cannot_be_read(pets):
    images = load_dataset(str(pets)).images.images[:5]
    features = FeatureSpec("raw/14", (0,), size=Resize((28, 42)))
    tokens, images_per_second = measure_speed(load_backbone("raw/14"), features, images)
    assert tokens == 6
    assert images_per_second > 1
    assert isinstance(load_backbone("raw/14"), RawPatches)


def test_bars_are_as_long_as_their_numbers(tmp_path):
    draw_bars(["a", "b"], [("top1 %", [50.0, 100.0], 100)], tmp_path / "bars.png", dpi=72)
    with Image.open(tmp_path / "bars.png") as picture:
        pixels = np.asarray(picture).astype(int)
    lengths = [(np.abs(pixels - color).sum(2) == 0).sum(1).max() for color in ((213, 94, 0), (0, 114, 178))]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=1)
    assert [format_number(value) for value in (0.5, 3.14159, 98.26, 1234.5, 0)] == [
        "0.500",
        "3.1",
        "98.3",
        "1,234",
        "0.0",
    ]
