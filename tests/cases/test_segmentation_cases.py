"""Data sets, and runs of other commands, that a command of segmentation is pointed at."""

import json
import shutil

import pytest
from case_helpers import sail, says_one_line
from helpers import noise
from PIL import Image

RAW = ["--model", "raw/14", "--device", "cpu"]
QUICK = [
    *RAW,
    "--steps",
    "1",
    "--warmup",
    "0",
    "--batch_size",
    "1",
    "--crop",
    "28",
    "--resize",
    "56",
    "--overlays",
    "1",
]


def write_pairs(folder):
    """Two images and masks a split, with masks in a folder of the plain layout's other name."""
    for split in ("train", "val"):
        for index in range(2):
            for kind in ("images", "labels"):
                path = folder / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = noise(56, 56) if kind == "images" else noise(56, 56)[..., 0] % 2
                Image.fromarray(pixels).save(path)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "data")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    done = sail("segment", "train", write_pairs(folder / "data"), "--out", folder / "run", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite", "true"]], ids=["", "overwrite"])
def test_predictions_never_take_the_place_of_masks(data, head, overwrite):
    """A1"""
    before = contents(data)
    done = sail("segment", "predict", data / "images", "--head", head, "--out", data, *overwrite)
    assert contents(data) == before
    assert says_one_line(done, "has labels and no run.json"), done.stderr


def test_label_maps_of_an_evaluation_never_take_the_place_of_masks(data, head):
    """A1, from another command"""
    before = contents(data)
    done = sail("segment", "eval", data, "--head", head, "--out", data, "--label_maps", "true")
    assert contents(data) == before
    assert says_one_line(done, "has labels and no run.json"), done.stderr


def test_training_never_deletes_masks(data):
    """A2"""
    before = contents(data)
    for overwrite in ([], ["--overwrite", "true"]):
        done = sail("segment", "train", data, "--out", data, *QUICK, *overwrite)
        assert contents(data) == before
        assert says_one_line(done, "has labels and no run.json"), done.stderr


def test_a_run_that_is_overwritten_takes_only_its_own_files_along(data, tmp_path):
    """A2: of other things in the folder of a run, and in its folders, nothing goes."""
    out = tmp_path / "run"
    assert sail("segment", "train", data, "--out", out, *QUICK).returncode == 0
    drawn = set((out / "overlays").rglob("*.png"))
    assert drawn
    others = [out / "labels/mine.png", out / "overlays/mine.png", out / "notes.txt"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    again = sail("segment", "train", data, "--out", out, *QUICK, "--overlays", "0", "--overwrite", "true")
    assert again.returncode == 0, again.stderr
    assert all(path.read_text() == "mine" for path in others)
    assert not any(path.exists() for path in drawn)


def test_predictions_that_are_overwritten_take_only_their_own_files_along(data, head, tmp_path):
    out = tmp_path / "maps"
    predict = ["segment", "predict", data / "images", "--head", head, "--out", out]
    assert sail(*predict).returncode == 0
    (out / "labels/mine.png").write_text("mine")
    shutil.rmtree(data / "images/val")
    assert sail(*predict, "--overwrite", "true").returncode == 0
    assert (out / "labels/mine.png").read_text() == "mine"
    assert sorted(path.name for path in (out / "labels").rglob("*.png")) == ["0.png", "1.png", "mine.png"]


def test_a_list_of_pictures_does_not_reach_beyond_the_folder(data, tmp_path):
    out, secret = tmp_path / "run", tmp_path / "secret.png"
    assert sail("segment", "train", data, "--out", out, *QUICK).returncode == 0
    secret.write_text("mine")
    with (out / "pictures.jsonl").open("a") as log:
        log.write(json.dumps("../secret.png") + "\n")
    sail("segment", "train", data, "--out", out, *QUICK, "--overwrite", "true")
    assert secret.read_text() == "mine"


def test_an_evaluation_again_into_its_own_folder(data, head, tmp_path):
    command = ["segment", "eval", data, "--head", head, "--out", tmp_path / "eval", "--overlays", "1"]
    for _ in range(2):
        assert sail(*command).returncode == 0
    done = sail("segment", "eval", data, "--head", head, "--out", head)
    assert says_one_line(done, "is of sail segment train"), done.stderr


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mask: mask.convert("RGB"), "RGB"),
        (lambda mask: mask.resize((20, 30)), "of another size than the image"),
    ],
)
@pytest.mark.parametrize("classes", [None, "a\nb\n"])
def test_e6_masks_that_all_have_one_fault(tmp_path, spoil, words, classes):
    data = write_pairs(tmp_path / "data")
    if classes:
        (data / "classes.txt").write_text(classes)
    for path in data.glob("labels/*/*.png"):
        spoil(Image.open(path)).save(path)
    done = sail("segment", "train", data, "--out", tmp_path / "out", *QUICK)
    assert says_one_line(done, words)
    assert "pixel that counts" not in done.stderr
