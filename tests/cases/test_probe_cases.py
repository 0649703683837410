"""Inputs that have failed before: probes and sweeps of stored features, and of photographs that lie on their side."""

import json

import numpy as np
import pytest
from case_helpers import MODEL, extract, sail, says_one_line
from helpers import noise
from PIL import Image

SETTINGS = ["--probes", "ridge", "--plots", "false"]


@pytest.fixture
def photos(tmp_path):
    """Two classes, each image stored on its side with the note of a camera."""
    exif = Image.Exif()
    exif[274] = 6
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = noise(28, 56, number + 100 * (label == "cat")) // 2 + 90 * (label == "cat")
            image = Image.fromarray(pixels.astype(np.uint8)).transpose(Image.Transpose.ROTATE_90)
            image.save(tmp_path / "photos" / label / f"{number}.png", exif=exif)
    return tmp_path / "photos"


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_e12_a_sweep_of_stored_layers(photos, tmp_path, pool):
    stored = tmp_path / "features"
    model = ["--model", "sail-tiny", "--devices", "cpu"]
    done = sail("extract", photos, "--out", stored, *model, "--layers", "0,3,5", "--pool", pool)
    assert done.returncode == 0, done.stderr
    done = sail("sweep", stored, "--out", tmp_path / "swept", *SETTINGS)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    assert [one["layer"] for one in report["results"]] == [0, 3, 5]
    assert "best layer" in done.stdout
    done = sail("sweep", photos, "--out", tmp_path / "direct", *SETTINGS, "--device", "cpu")
    direct = {
        one["layer"]: one["value"] for one in json.loads((tmp_path / "direct" / "sweep.json").read_text())["results"]
    }
    assert all(one["value"] == pytest.approx(direct[one["layer"]], abs=0.01) for one in report["results"])
    done = sail("sweep", stored, "--out", tmp_path / "again", *SETTINGS, "--model", "sail-tiny", "--norm", "false")
    assert says_one_line(done, "--norm has no effect")


def test_e13_probe_turns_photographs_upright(photos, tmp_path):
    done = sail("probe", photos, "--out", tmp_path / "out", *SETTINGS, "--model", "raw/14", "--exif_rotate", "true")
    assert done.returncode == 0, done.stderr
    [folder] = [run.parent for run in (tmp_path / "out").rglob("run.json") if (run.parent / "index.parquet").exists()]
    assert '"exif_rotate": true' in (folder / "run.json").read_text()
    assert extract(photos, tmp_path / "upright", "--exif_rotate", "true", "--pool", "mean").returncode == 0
    stored, upright = (next(place.glob("**/features_00000.npy")) for place in (folder, tmp_path / "upright"))
    np.testing.assert_array_equal(np.load(stored), np.load(upright))


def test_e13_sweep_turns_photographs_upright(photos, tmp_path):
    found = {}
    for turned in ("true", "false"):
        out = tmp_path / turned
        done = sail("sweep", photos, "--out", out, *SETTINGS, "--device", "cpu", "--exif_rotate", turned)
        assert done.returncode == 0, done.stderr
        report = json.loads((out / "sweep.json").read_text())
        assert report["settings"]["exif_rotate"] is (turned == "true")
        found[turned] = report["token_norms"]["mean"]
    assert found["true"] != found["false"]


def test_e13_predict_turns_photographs_upright(photos, tmp_path):
    data = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (data / kind / split).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(noise(56, 56, number)).save(data / "images" / split / f"{number}.png")
            Image.fromarray(noise(56, 56, number)[..., 0] % 2).save(data / "masks" / split / f"{number}.png")
    steps = ["--steps", "2", "--warmup", "0", "--crop", "28", "--batch_size", "2", "--overlays", "0"]
    head = tmp_path / "head"
    done = sail("segment", "train", data, "--out", head, *MODEL[:2], "--device", "cpu", "--resize", "56", *steps)
    assert done.returncode == 0, done.stderr
    for turned, size in (("true", (56, 28)), ("false", (28, 56))):
        out = tmp_path / turned
        done = sail("segment", "predict", photos / "cat", "--head", head, "--out", out, "--exif_rotate", turned)
        assert done.returncode == 0, done.stderr
        assert Image.open(out / "labels" / "0.png").size == size
    done = sail("segment", "predict", photos / "cat", "--head", head, "--out", tmp_path / "true")
    assert says_one_line(done, "exif_rotate")
