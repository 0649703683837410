"""`sail segment train | eval | predict` from end to end."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from drawn_data import COLORS, draw, write_data
from PIL import Image

from evals.scenes import CLASSES, TRAINING_SEEDS
from evals.segmentation import layouts
from sail_cli import main
from sail_encoder.backbones.raw import RawPatches

FAST = ["--model", "raw/14", "--crop", "56", "--batch_size", "8", "--warmup", "5", "--learning_rate", "0.01"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_data(tmp_path_factory.mktemp("data"), train=24, val=8))


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A linear head trained online and one trained on cached grids."""
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in ("online", "cached")}
    for mode, out in folders.items():
        options = ["--mode", mode, "--steps", "200", *(["--jitter", "[0.8,1.25]"] if mode == "online" else [])]
        assert main(["segment", "train", data, "--out", str(out), *options, *FAST]) == 0
    return folders


def test_both_modes_learn_and_agree_within_two_points(runs):
    scores = {mode: results(folder)["scores"]["mIoU"] for mode, folder in runs.items()}
    assert scores["online"] > 0.7
    assert abs(scores["online"] - scores["cached"]) < 0.02


def test_the_report_says_how_a_number_was_made(runs):
    for mode, folder in runs.items():
        protocol = results(folder)["protocol"]
        assert protocol["trained"] == mode
        assert (protocol["backbone"], protocol["head"], protocol["images"]) == ("raw/14", "linear", 8)


def test_the_worst_and_the_best_images(runs):
    folder = runs["online"]
    rows = [line.split(",") for line in (folder / "images.csv").read_text().splitlines()]
    assert rows[0] == ["image", "mIoU"]
    scores = [float(score) for _, score in rows[1:]]
    assert len(scores) == 8
    assert scores == sorted(scores)
    with Image.open(folder / "worst.png") as worst, Image.open(folder / "best.png") as best:
        assert worst.width == best.width > 900
        assert worst.tobytes() != best.tobytes()


def test_what_a_run_leaves(runs):
    folder = runs["online"]
    left = {path.name for path in folder.iterdir()}
    assert {"head.safetensors", "head.json", "checkpoint.pt", "log.jsonl", "curves.png", "iou.png", "run.json"} <= left
    pictures = sorted((folder / "overlays").iterdir())
    assert len(pictures) == 8
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    with Image.open(pictures[0]) as picture, Image.open(folder / "curves.png") as curves:
        assert picture.width > 3 * 50
        assert curves.width > curves.height


def test_eval_repeats_the_scores_of_training(runs, data, tmp_path, capsys):
    assert main(["segment", "eval", data, "--head", str(runs["online"]), "--out", str(tmp_path)]) == 0
    assert results(tmp_path) == results(runs["online"])
    out = capsys.readouterr().out
    assert f"mIoU {100 * results(tmp_path)['scores']['mIoU']:.2f} " in out
    assert "linear head, online training, layers 0 of raw/14" in out


def write_ade20k(root):
    """Drawn data under ADE20K's names: 0 does not count, and classes start at 1."""
    write_data(root, train=4, val=2)
    for split, other in (("train", "training"), ("val", "validation")):
        (root / "images" / split).rename(root / "images" / other)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "masks" / split).rename(root / "annotations" / other)
    for path in (root / "annotations").rglob("*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 255, 0, ids + 1).astype(np.uint8)).save(path)


def test_eval_reads_masks_as_in_training(tmp_path, capsys):
    write_ade20k(data := tmp_path / "data")
    out, layout = tmp_path / "run", ["--layout", "ade20k"]
    options = ["--steps", "6", *FAST, "--overlays", "0"]
    assert main(["segment", "train", str(data), "--out", str(out), *options, *layout]) == 0
    for name, flags in (("with", layout), ("without", [])):
        assert main(["segment", "eval", str(data), "--head", str(out), "--out", str(tmp_path / name), *flags]) == 0
        assert results(tmp_path / name) == results(out)
    for command in (["train", str(data), "--out", str(tmp_path / "x")], ["eval", str(data), "--head", str(out)]):
        capsys.readouterr()
        assert main(["segment", *command, "--layout", "folder"]) == 2
        error = capsys.readouterr().err.strip()
        assert "is a name of ADE20K, where 0 does not count and classes start at 1; use --layout ade20k" in error
        assert "\n" not in error


def test_ids_in_eval_mean_what_they_meant_in_training_unless_a_flag_is_given(data, tmp_path, capsys):
    out, zero = tmp_path / "run", ["--reduce_zero_label", "true"]
    assert main(["segment", "train", data, "--out", str(out), "--steps", "6", *FAST, "--overlays", "0", *zero]) == 0
    evaluate = ["segment", "eval", data, "--head", str(out), "--out", str(tmp_path / "eval")]
    for flags in ([], zero, ["--layout", "folder"]):
        assert main([*evaluate, *flags]) == 0
        assert results(tmp_path / "eval") == results(out)
    assert main([*evaluate, "--reduce_zero_label", "false"]) == 2
    assert "ids that are none of the 3 classes: 3" in capsys.readouterr().err
    with_names = tmp_path / "named"
    shutil.copytree(data, with_names)
    evaluate[2] = str(with_names)
    (with_names / "classes.txt").write_text("class 1\nclass 2\nclass 3\n")
    assert main(evaluate) == 0
    assert results(tmp_path / "eval") == results(out)
    (with_names / "classes.txt").write_text("class 3\nclass 2\nclass 1\nclass 0\n")
    assert main(evaluate) == 2
    assert "this head tells 3 classes apart, the data set has 4; see --class_map" in capsys.readouterr().err


def test_eval_in_other_ways(runs, data, tmp_path, capsys):
    ways = ["--window", "56", "--stride", "28", "--scales", "[1.0,1.5]", "--flip", "true"]
    assert main(["segment", "eval", data, "--head", str(runs["online"]), *ways, "--out", str(tmp_path)]) == 0
    assert "windows of 56x56 every 28x28 pixels, scales 1, 1.5, mirrored too" in capsys.readouterr().out
    assert results(tmp_path)["scores"] != results(runs["online"])["scores"]
    assert abs(results(tmp_path)["scores"]["mIoU"] - results(runs["online"])["scores"]["mIoU"]) < 0.1


def test_windows_of_training_are_those_of_eval(data, tmp_path, capsys):
    out = tmp_path / "run"
    windows = ["--window", "42", "--stride", "20"]
    assert main(["segment", "train", data, "--out", str(out), "--steps", "6", *FAST, *windows, "--overlays", "0"]) == 0
    assert results(out)["protocol"]["window"] == [42, 42]
    assert main(["segment", "eval", data, "--head", str(out), "--out", str(tmp_path / "eval")]) == 0
    assert results(tmp_path / "eval") == results(out)
    assert main(["segment", "eval", data, "--head", str(out), "--window", "whole"]) == 0
    assert "windows" not in capsys.readouterr().out.split("at size")[-1].splitlines()[0]


def test_predictions_are_label_maps_of_the_images_own_size(runs, data, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["segment", "predict", f"{data}/images/val", "--head", str(runs["online"]), "--out", str(out)]
    assert main(command) == 0
    assert "8 images in" in capsys.readouterr().out
    assert (out / "classes.txt").read_text().split("\n")[:-1] == [f"class {index}" for index in range(len(COLORS))]
    right = []
    for index in range(8):
        with Image.open(out / f"labels/{index}.png") as label_map, Image.open(f"{data}/masks/val/{index}.png") as mask:
            assert label_map.mode == "P"
            assert label_map.size == mask.size
            truth = np.asarray(mask)
            right.append((np.asarray(label_map) == truth)[truth != 255].mean())
    assert np.mean(right) == pytest.approx(results(runs["online"])["scores"]["aAcc"], abs=0.02)
    overlay = np.asarray(Image.open(out / "overlays/0.png"))
    assert overlay.shape == (*np.asarray(Image.open(out / "labels/0.png")).shape, 3)


def test_predicted_label_maps_can_serve_as_masks(runs, data, tmp_path, capsys):
    out = tmp_path / "again"
    command = ["segment", "predict", f"{data}/images/val", "--head", str(runs["online"]), "--out", str(out / "masks")]
    assert main([*command, "--overlays", "false"]) == 0
    (out / "images").mkdir()
    (out / "masks/labels").rename(out / "masks/val")
    (out / "images/val").symlink_to(f"{data}/images/val")
    (out / "masks/classes.txt").rename(out / "classes.txt")
    assert main(["segment", "eval", str(out), "--head", str(runs["online"])]) == 0
    assert "mIoU 100.00 mAcc 100.00 aAcc 100.00" in capsys.readouterr().out


def test_prediction_goes_on_where_it_was_and_records_failures(runs, tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(1)
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    for name in ("a.png", "b.png", "b.bmp"):
        Image.fromarray(draw(60, 80, rng)[0]).save(source / name)
    command = ["segment", "predict", str(source), "--head", str(runs["online"]), "--out", str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.png", "b.bmp.png", "b.png.png"]
    stamp = (out / "labels/a.png").stat().st_mtime_ns
    Image.fromarray(draw(30, 40, rng)[0]).save(source / "c.png")
    (source / "d.png").write_bytes(b"nothing")
    capsys.readouterr()
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "4 images in" in captured.out
    assert "1 of them new" in captured.out
    assert "1 images failed" in captured.err
    with (out / "failures.csv").open() as file:
        assert list(csv.reader(file)) == [["path", "reason"], ["d.png", "not an image that Pillow can read"]]
    assert not (out / "labels/d.png").exists()
    assert (out / "labels/a.png").stat().st_mtime_ns == stamp
    assert main([*command, "--flip", "true"]) == 2
    assert "inference was at size native, now at size native, mirrored too" in capsys.readouterr().err


def predict_folder(source, head, out, *more):
    return main(["segment", "predict", str(source), "--head", str(head), "--out", str(out), *more])


def put_images(folder, *names, seed=1):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(draw(60, 80, rng)[0]).save(folder / name)
    return folder


def test_images_of_another_folder_are_not_taken_for_those_that_are_done(runs, tmp_path, capsys):
    head, out = runs["online"], tmp_path / "out"
    first, second = (put_images(tmp_path / day, "0.png", seed=seed) for seed, day in enumerate(("a", "b")))
    assert predict_folder(first, head, out) == 0
    before = (out / "labels/0.png").read_bytes()
    assert predict_folder(second, head, out) == 2
    assert f"root was {first}, now {second}; use another --out or --overwrite true" in capsys.readouterr().err
    assert predict_folder(first, head, out, "--precision", "bfloat16") == 2
    assert "precision was float32, now bfloat16" in capsys.readouterr().err
    assert predict_folder(second, head, out, "--overwrite", "true") == 0
    assert "1 of them new" in capsys.readouterr().out
    assert (out / "labels/0.png").read_bytes() != before


def test_changed_images_are_predicted_anew(runs, tmp_path, capsys):
    head, out, source = runs["online"], tmp_path / "out", put_images(tmp_path / "images", "a.png", "b.png")
    assert predict_folder(source, head, out) == 0
    before = {name: (out / f"labels/{name}.png").read_bytes() for name in "ab"}
    capsys.readouterr()
    put_images(source, "a.png", seed=2)
    assert predict_folder(source, head, out) == 0
    assert "2 images in" in (printed := capsys.readouterr().out)
    assert "1 of them new" in printed
    assert (out / "labels/a.png").read_bytes() != before["a"]
    assert (out / "labels/b.png").read_bytes() == before["b"]
    (source / "a.png").write_bytes(b"broken")
    assert predict_folder(source, head, out) == 1
    assert [path.name for path in (out / "labels").iterdir()] == ["b.png"]
    assert [path.name for path in (out / "overlays").iterdir()] == ["b.png"]


def test_a_label_map_that_was_cut_short_is_written_again(runs, tmp_path, capsys):
    head, out, source = runs["online"], tmp_path / "out", put_images(tmp_path / "images", "a.png", "b.png")
    assert predict_folder(source, head, out) == 0
    whole = (out / "labels/a.png").read_bytes()
    (out / "labels/a.png").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert predict_folder(source, head, out) == 0
    assert "1 of them new" in capsys.readouterr().out
    assert (out / "labels/a.png").read_bytes() == whole


def test_overlays_that_are_missing_are_drawn(runs, tmp_path):
    head, out, source = runs["online"], tmp_path / "out", put_images(tmp_path / "images", "a.png")
    assert predict_folder(source, head, out, "--overlays", "false") == 0
    assert not (out / "overlays").exists()
    assert predict_folder(source, head, out) == 0
    assert (out / "overlays/a.png").exists()


def test_overwriting_leaves_nothing_of_earlier_images_and_nothing_of_others_is_overwritten(runs, tmp_path, capsys):
    head, out = runs["online"], tmp_path / "out"
    assert predict_folder(put_images(tmp_path / "a", "0.png", "1.png"), head, out) == 0
    assert predict_folder(put_images(tmp_path / "b", "0.png"), head, out, "--overwrite", "true") == 0
    assert [path.name for path in (out / "labels").iterdir()] == ["0.png"]
    copy = tmp_path / "run"
    shutil.copytree(head, copy)
    assert predict_folder(tmp_path / "b", head, copy, "--overwrite", "true") == 2
    assert "is of sail segment train, so it is not overwritten; use another --out" in capsys.readouterr().err
    assert (copy / "run.json").read_bytes() == (head / "run.json").read_bytes()
    (out / "run.json").unlink()
    assert predict_folder(tmp_path / "b", head, out, "--overwrite", "true") == 2
    assert "has labels and no run.json, so it is no run of sail segment predict" in capsys.readouterr().err


def test_names_of_label_maps_are_never_shared(runs, tmp_path):
    source = put_images(tmp_path / "images", "a.png", "a.png.jpg", "b.png")
    assert predict_folder(source, runs["online"], tmp_path / "out") == 0
    left = sorted(path.name for path in (tmp_path / "out/labels").iterdir())
    assert left == ["a.png", "a.png.jpg.png", "b.png"]


def test_neighbors_learn_in_one_pass(data, tmp_path, monkeypatch):
    passes = []
    forward = RawPatches.forward_patches
    monkeypatch.setattr(
        RawPatches, "forward_patches", lambda *arguments: passes.append(1) or forward(*arguments), raising=True
    )
    out = tmp_path / "run"
    assert main(["segment", "train", data, "--out", str(out), "--head", "knn", *FAST, "--overlays", "0"]) == 0
    assert results(out)["scores"]["mIoU"] > 0.6
    # Three batches of 8 crops see each of 24 images once; the rest is validation.
    assert 3 < len(passes) < 3 + 8 + 1


def test_upernet_trains(data, small_checkpoint, tmp_path, capsys):
    out = tmp_path / "run"
    head = ["--head", "upernet", "--layers", "all", "--head_options", '{"channels": 8, "auxiliary_channels": 8}']
    options = ["--model", str(small_checkpoint), "--crop", "56x42", "--steps", "3", "--warmup", "0"]
    assert main(["segment", "train", data, "--out", str(out), *options, "--layers", "-1", *head[:2], *head[4:]]) == 0
    assert results(out)["protocol"]["head"] == "upernet"
    assert main(["segment", "train", data, "--out", str(tmp_path / "x"), *options, *head]) == 2
    assert "a pyramid is made of 1 or 4 layers, not 3; use layers -1 or even4" in capsys.readouterr().err


def test_scenes_of_one_thing_and_of_several(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "SPLITS", {"training": range(9), "validation": range(9, 10)})
    shown = {}
    for name in layouts.SCENES:
        layouts.draw_scenes(tmp_path / name, name)
        masks = (np.asarray(Image.open(mask)) for mask in (tmp_path / name / "annotations/training").iterdir())
        shown[name] = [len(np.unique(mask)) - 1 for mask in masks]
    assert set(shown["scenes"]) == {1}
    assert max(shown["scenes-several"]) > 1


def test_scenes_are_drawn_in_the_layout_of_ade20k(tmp_path, monkeypatch):
    assert not [seed for seeds in layouts.SPLITS.values() for seed in seeds if seed in TRAINING_SEEDS]
    monkeypatch.setattr(layouts, "SPLITS", {"training": range(5), "validation": range(9, 11)})
    assert main(["segment", "train", "scenes", "--out", str(tmp_path), "--steps", "2", *FAST, "--warmup", "0"]) == 0
    scores = results(tmp_path)["scores"]
    assert list(scores["classes"]) == list(CLASSES)
    masks = sorted((tmp_path / "scenes/annotations/training").iterdir())
    assert len(masks) == 5
    assert np.asarray(Image.open(masks[0])).min() >= 1
    stamps = [mask.stat().st_mtime_ns for mask in masks]
    assert main(["segment", "train", "scenes", "--out", str(tmp_path), "--steps", "2", *FAST, "--warmup", "0"]) == 0
    assert stamps == [mask.stat().st_mtime_ns for mask in masks]
    for layout in ([], ["--layout", "ade20k"]):
        command = ["segment", "eval", str(tmp_path / "scenes"), "--head", str(tmp_path), *layout]
        assert main([*command, "--out", str(tmp_path / "eval")]) == 0
        assert results(tmp_path / "eval")["scores"] == scores


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_help_does_not_wait_for_torch(command):
    heavy = {"torch", "transformers", "matplotlib"}
    check = f"import evals.commands.segment_{command}, sys; print({heavy} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"


def test_without_matplotlib_the_curves_are_left_out(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["segment", "train", data, "--out", str(tmp_path), "--steps", "6", *FAST]) == 0
    assert "no curves.png without matplotlib; pip install matplotlib" in capsys.readouterr().err
    assert (tmp_path / "results.json").exists()
    assert not (tmp_path / "curves.png").exists()
    assert not (tmp_path / "iou.png").exists()


def test_an_interrupted_extraction_ends_the_run(data, tmp_path, monkeypatch):
    progress = SimpleNamespace(done=0)
    monkeypatch.setattr("evals.features.run_plan", lambda *_: (143, progress, None))
    with pytest.raises(SystemExit) as ended:
        main(["segment", "train", data, "--out", str(tmp_path), "--mode", "cached", *FAST])
    assert ended.value.code == 143


TRAIN = ["segment", "train", "DATA", "--out", "OUT", "--model", "raw/14"]
EVAL = ["segment", "eval", "DATA", "--head", "HEAD"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*TRAIN, "--crop", "50"], "--crop: resize 50x50 is not a multiple of the patch size 14; the nearest is 56x56"),
        ([*TRAIN, "--crop", "big"], "--crop: resize 'big' is not understood"),
        ([*TRAIN, "--crop", "native"], "--crop: 'native' is not understood; use a side"),
        ([*TRAIN, "--window", "60"], "--window: resize 60x60 is not a multiple"),
        ([*TRAIN, "--stride", "14"], "--stride 14 needs a --window; give one too, or leave it out"),
        ([*TRAIN, "--window", "56", "--stride", "57"], "--stride cannot be 57; allowed is 1 to 56"),
        ([*TRAIN, "--mode", "cached", "--distort", "true"], "--distort has no effect with --mode cached"),
        ([*TRAIN, "--mode", "cached", "--jitter", "[1,2]"], "--jitter has no effect with --mode cached"),
        ([*TRAIN, "--mode", "cached", "--colors", "dinov3"], "--colors has no effect with --mode cached"),
        ([*TRAIN, "--distort", "false", "--colors", "mmseg"], "--colors mmseg has no effect with --distort false"),
        ([*TRAIN, "--cache", "x"], "--cache has no effect with --mode online"),
        ([*TRAIN, "--jitter", "[2,1]"], "--jitter cannot be [2.0,1.0]"),
        ([*TRAIN, "--jitter", "[2]"], "--jitter cannot be [2]"),
        ([*TRAIN, "--layers", "3"], "layer"),
        ([*TRAIN, "--seed", "-1"], "--seed cannot be -1; allowed is 0 to 9223372036854775807"),
        ([*TRAIN, "--seed", "9223372036854775808"], "--seed cannot be 9223372036854775808"),
        ([*TRAIN, "--overlays", "-1"], "--overlays cannot be -1; allowed is 0 or more"),
        ([*TRAIN, "--validate_every", "-1"], "--validate_every cannot be -1; allowed is 0 or more"),
        ([*TRAIN, "--save_every", "-5"], "--save_every cannot be -5"),
        ([*TRAIN, "--log_every", "-1"], "--log_every cannot be -1"),
        ([*TRAIN, "--crop", "0"], "--crop: resize to 0x0 is not possible; sides start at 1 pixel"),
        ([*TRAIN, "--window", "7"], "--window: resize 7x7 is not a multiple of the patch size 14"),
        ([*TRAIN, "--window", "56", "--stride", "0"], "--stride cannot be 0; allowed is 1 to 56"),
        ([*TRAIN[:4], "FILE"], "FILE is a file; name a folder"),
        ([*TRAIN[:4], "FILE/inside"], "FILE is a file; name a folder"),
        ([*TRAIN, "--mode", "cached", "--cache", "FILE"], "--cache cannot be FILE, because FILE is a file"),
        ([*TRAIN, "--ignore_label", "300"], "--ignore_label cannot be 300; allowed is 0 to 255"),
        ([*TRAIN, "--class_map", "MAP", "--reduce_zero_label", "true"], "have no effect beside it; leave them out"),
        (
            ["segment", "train", "scenes", "--out", "OUT", "--layout", "voc2012"],
            "--layout cannot be voc2012 with drawn",
        ),
        ([*TRAIN, "--head", "lineer"], "no head 'lineer'; there is linear, upernet, knn"),
        ([*TRAIN, "--head_options", '{"width": 3}'], "the linear head has no option 'width'"),
        ([*TRAIN, "--head_options", '{"num_classes": 3}'], "--head_options cannot set num_classes, which model,"),
        ([*TRAIN, "--mode", "cached", "--head_options", '{"dropout": 3}'], "cannot be built with {'dropout': 3}"),
        ([*TRAIN, "--layout", "ade"], "--layout cannot be ade; allowed is folder, ade20k"),
        ([*TRAIN, "--layout", "ade20k"], "has no train split in this layout (images/training with"),
        ([*TRAIN, "--schedule", "steps"], "--schedule cannot be steps; allowed is poly, cosine, constant"),
        ([*TRAIN, "--mode", "cached", "--cache_gb", "0"], "more than the 0 GB of --cache_gb"),
        (["segment", "train", "gone", "--out", "OUT"], "no folder gone"),
        ([*EVAL[:3], "--head", "gone"], "gone holds no head that can be read"),
        ([*EVAL, "--scales", "[0]"], "--scales cannot be [0.0]; give factors above 0 and up to 16"),
        ([*EVAL, "--scales", "[1,17]"], "--scales cannot be [1.0, 17.0]; give factors above 0 and up to 16"),
        ([*EVAL, "--overlays", "-1"], "--overlays cannot be -1; allowed is 0 or more"),
        ([*EVAL, "--out", "FILE"], "--out cannot be FILE, because FILE is a file; name a folder"),
        ([*EVAL, "--ignore_label", "-1"], "--ignore_label cannot be -1; allowed is 0 to 255"),
        ([*EVAL, "--layout", "ade"], "--layout cannot be ade; allowed is folder, ade20k"),
        ([*EVAL, "--window", "whole", "--stride", "14"], "--stride 14 needs a --window"),
        ([*EVAL, "--stride", "14"], "--stride 14 needs a --window"),
        ([*EVAL, "--model", "raw/7"], "this head was fitted on other features"),
        ([*EVAL, "--class_map", "MAP"], "class 1 of this head is 'class 1', of the data set 'b'; see --class_map"),
        ([*EVAL, "--class_map", "FEW"], "this head tells 4 classes apart, the data set has 2; see --class_map"),
        (["segment", "predict", "gone", "--head", "HEAD", "--out", "OUT"], "no file or folder gone"),
        (["segment", "predict", "DATA", "--head", "HEAD", "--out", "FILE"], "--out cannot be FILE"),
    ],
)
def test_mistakes_are_one_line_with_status_2(command, message, data, runs, tmp_path, capsys):
    (tmp_path / "map.json").write_text('{"0": "class 0", "1": "b", "2": "class 2", "3": "class 3", "255": null}')
    (tmp_path / "few.json").write_text('{"0": "a", "1": "b", "2": "b", "3": "b", "255": null}')
    known = {"DATA": data, "OUT": str(tmp_path / "out"), "HEAD": str(runs["online"])}
    (tmp_path / "file").touch()
    known |= {"FILE": str(tmp_path / "file"), "FILE/inside": str(tmp_path / "file/inside")}
    known |= {"MAP": str(tmp_path / "map.json"), "FEW": str(tmp_path / "few.json")}
    assert main([known.get(word, word) for word in command]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sail: ")]
    assert len(errors) == 1
    assert message.replace("FILE", known["FILE"]) in errors[0]
    assert not (tmp_path / "out" / "head.json").exists()


def test_tables_that_can_be_pasted_say_how_the_numbers_were_made(runs, data, tmp_path, capsys):
    text = (runs["cached"] / "results.md").read_text()
    scores = results(runs["cached"])["scores"]
    assert f"| {100 * scores['mIoU']:.2f} " in text
    facts = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- "))
    assert facts["data"] == f"{data}, validation, 8 images"
    assert facts["training data"].startswith(f"{data}, 24 named ")
    assert facts["steps"] == "200 of 8, adamw, poly, warm-up 5"
    assert facts["rate"] == "0.01, weight decay 0.0001"
    assert (facts["mode"], facts["head"], facts["seeds"]) == ("cached", "linear", "0")
    for part in ("raw pixels", "weights ", "layers 0", "pixels native", "precision float32"):
        assert part in facts["model"]
    assert {"versions", "date"} <= facts.keys()
    assert main(["segment", "eval", data, "--head", str(runs["cached"]), "--out", str(tmp_path), "--latex"]) == 0
    assert "in percent" in capsys.readouterr().out
    assert f"{100 * scores['mIoU']:.2f} & " in (tmp_path / "results.tex").read_text()
    assert not (runs["cached"] / "results.tex").exists()
    evaluated = (tmp_path / "results.md").read_text()
    assert [line for line in evaluated.splitlines() if line.startswith(("- rate", "- steps"))] == [
        f"- {name}: {facts[name]}" for name in ("steps", "rate")
    ]
