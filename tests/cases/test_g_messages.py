"""Group G: what commands say, and which spellings they take."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from case_helpers import extract, sail, says_one_line
from helpers import noise, save_images
from PIL import Image

from sail_encoder import FeatureFolder, UserError, load_backbone
from sail_encoder.images.decoding import read_image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photos"), 2)


@pytest.fixture(scope="module")
def out(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    assert extract(photos, folder).returncode == 0
    return folder


def test_layers_in_a_file_are_layers_of_a_flag(photos, tmp_path):
    (tmp_path / "x.yaml").write_text("layers: -1\n")
    done = extract(photos, tmp_path / "o", "--config", tmp_path / "x.yaml")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o" / "run.json").read_text())["settings"]["layers"] == [0]


def test_gray_of_16_bits_is_read_whatever_the_format(tmp_path):
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    (tmp_path / "a.pgm").write_bytes(b"P5\n20 20\n65535\n" + levels.astype(">u2").tobytes())
    Image.fromarray(levels).save(tmp_path / "a.png")
    pixels = [np.asarray(read_image(tmp_path / name)[0]) for name in ("a.pgm", "a.png")]
    assert np.array_equal(*pixels)
    assert (pixels[0][..., 0] == levels // 257).all()


@pytest.mark.parametrize("command", ["extract", "probe", "pca"])
def test_no_option_is_suggested_that_is_nothing_like_it(photos, command):
    done = sail(command, photos, "--batch_size", "8")
    assert says_one_line(done, "no option --batch_size; ")
    assert "did you mean" not in done.stderr


@pytest.mark.parametrize(("command", "option"), [("extract", "out"), ("probe", "out"), ("chat", "output")])
def test_a_short_option_is_no_source(photos, command, option):
    assert says_one_line(sail(command, photos, "-o", "x"), f"no option -o, did you mean '{option}'?")


def test_yes_and_no_need_no_value(photos, tmp_path):
    dry = extract(photos, tmp_path / "o", "--dry-run")
    assert dry.returncode == 0
    assert not (tmp_path / "o").exists()
    assert extract(photos, tmp_path / "o", "--no-dry-run", "--no-norm").returncode == 0
    assert json.loads((tmp_path / "o" / "run.json").read_text())["settings"]["norm"] is False
    assert re.fullmatch(r"sail \d+\.\d+\S*", sail("--version").stdout.strip())


def test_pictures_of_another_machine():
    """They are read where the package for their protocol is installed, see test_remote_cases."""
    for command in (["chat", "s3://bucket/a.png", "hi"], ["match", "s3://bucket/a.png", "s3://bucket/b.png"]):
        assert says_one_line(sail(*command), "s3:// needs a package that is not installed: pip install s3fs")


@pytest.mark.parametrize("model", ["timm/vit_tiny_patch16_224", "hf/facebook/dinov2-small", "raw/14"])
def test_models_that_cannot_chat(photos, model):
    done = sail("chat", photos / "000.png", "hi", "--model", model)
    assert says_one_line(done, f"{model} has no language model; models that chat are sail-tiny")


def test_what_is_said_to_install_can_be_installed():
    """The package is in no index, so that its extras can only be had in a clone."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    code = [path for name in ("sail_encoder", "heads", "evals", "tools") for path in (ROOT / name).rglob("*.py")]
    for path in [*pages, *code]:
        assert not re.search(r"sail-encoder\[|install [^\n]*\bsail-encoder", path.read_text(encoding="utf-8")), path


def test_a_file_of_questions_ends_with_a_line(photos, tmp_path):
    lines = [{"image": str(photos / "000.png"), "prompt": "a?"}, {"image": "nowhere.png", "prompt": "b?"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["chat", "--input", tmp_path / "q.jsonl", "--output", tmp_path / "a.jsonl", "--max_new_tokens", "1"]
    done = sail(*command, "--device", "cpu")
    assert done.returncode == 1
    assert done.stdout.strip() == f"2 of 2 answers in {tmp_path / 'a.jsonl'}, 2 of them new"
    assert "1 of them are errors; the same command asks these questions again" in done.stderr


def test_features_by_the_name_of_their_image(out):
    folder = FeatureFolder(out)
    assert np.array_equal(folder.read("000.png"), folder["000.png"])
    with pytest.raises(UserError, match=r"has no features of 'other\.png'; there are 2 images, such as '000\.png'"):
        folder.read("other.png")


def test_features_are_printed_in_a_line():
    features = load_backbone("raw/14").encode([noise(30, 40)])
    assert str(features[0]) == "Features(3x3 patches of 588 channels, layers 0, image 30x40)"


def test_pages_of_measurements_hold_no_stray_words():
    assert not re.search(r"^[A-Z]{4,}[A-Z][a-z]", (ROOT / "benchmarks" / "RESULTS.md").read_text(), re.MULTILINE)
