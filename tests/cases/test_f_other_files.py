"""Group F, one by one: files of checkpoints, lists and options that are read and are not what they seem."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pyarrow
import pytest
from case_helpers import MODEL, extract, sail, says_one_line
from helpers import save_images
from pyarrow import parquet
from transformers import Dinov2Config, Dinov2Model

from sail_encoder import FeatureFolder
from sail_encoder.io.errors import UserError

DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe\0",
    b"[" * 100_000,
    b'{"image_mean": "x", "size": [], "hidden_size": {}}',
    b'{"image_mean": []}',
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photos"), 1)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small DINOv2 as transformers saves it."""
    folder = tmp_path_factory.mktemp("published") / "dino"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 56, "width": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(mean))
    return folder


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", DAMAGED)
def test_a_folder_of_transformers_that_is_damaged(published, photos, tmp_path, name, content):
    folder = tmp_path / "dino"
    shutil.copytree(published, folder)
    (folder / name).write_bytes(content)
    out = ["--out", tmp_path / "out", "--devices", "cpu"]
    done = sail("extract", photos, "--model", f"hf/{folder}", *out)
    if name == "preprocessor_config.json" and done.returncode == 0:
        return
    assert says_one_line(done, str(folder)), done.stderr
    assert "please report" not in done.stderr


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
@pytest.mark.parametrize("option", ["--config", "--input"])
def test_what_is_no_file_is_not_waited_for(photos, tmp_path, kind, option):
    place = tmp_path / "x.jsonl"
    {"FIFO": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path)}[kind](place)
    command = {
        "--config": ["extract", photos, "--config", place],
        "--input": ["chat", "--input", place, "--output", tmp_path / "out.jsonl"],
    }
    assert says_one_line(sail(*command[option], timeout=120), "x.jsonl")


def test_a_tar_as_a_file_of_options(photos, tmp_path):
    with tarfile.open(tmp_path / "x.yaml", "w") as shard:
        shard.add(photos / "000.png", "a.png")
    assert says_one_line(sail("extract", photos, "--config", tmp_path / "x.yaml"), "x.yaml: this is not YAML")


@pytest.mark.parametrize("text", ["[" * 50_000, "{a: " * 50_000, "a:\n" + "".join(" " * n + "- \n" for n in range(90))])
def test_options_that_are_nested_without_end(photos, tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    done = sail("extract", photos, "--config", tmp_path / "x.yaml", timeout=60)
    assert done.returncode == 2
    assert "x.yaml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["2020-13-45", "9" * 5000, "!!int x", "!!python/object:os.system x"])
def test_values_that_only_look_like_values(photos, tmp_path, value):
    (tmp_path / "x.yaml").write_text(f"max_tokens: {value}\n")
    assert says_one_line(sail("extract", photos, "--config", tmp_path / "x.yaml"), "x.yaml")


@pytest.mark.parametrize(
    "labels",
    [
        pyarrow.array([[1, 2]]),
        pyarrow.array([{"a": 1}]),
        pyarrow.array([b"\xff"]),
        pyarrow.array([None], pyarrow.string()),
        pyarrow.array([float("nan")]),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_labels_of_odd_types(photos, tmp_path, labels, task):
    path = pyarrow.array([str(photos / "000.png")])
    parquet.write_table(pyarrow.table({"path": path, "label": labels}), tmp_path / "x.parquet")
    out = ["--out", tmp_path / "o", "--model", "raw/14", "--device", "cpu"]
    done = sail("probe", tmp_path / "x.parquet", "--task", task, *out)
    assert done.returncode == 2
    assert "please report" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("sail: ")]) == 1


@pytest.mark.parametrize("command", ["extract", "probe"])
def test_two_columns_of_paths(photos, tmp_path, command):
    columns = [pyarrow.array([str(photos / "000.png")])] * 3
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["path", "path", "label"]), tmp_path / "x.parquet")
    done = sail(command, tmp_path / "x.parquet", "--out", tmp_path / "o", "--model", "raw/14")
    assert says_one_line(done, "x.parquet has several columns 'path'")


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}, None], object))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", pickled(), b"\x93NUMPY\x01\x00\x10\x00{'descr': ('''   "])
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_stored_features_that_are_no_numbers(photos, tmp_path, content, pool):
    assert extract(photos, tmp_path / "out", "--pool", pool).returncode == 0
    path = next(path for path in (tmp_path / "out").rglob("*.npy"))
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        FeatureFolder(tmp_path / "out").read("000.png")
    # The same command finds that the features are not there, and makes them again.
    assert extract(photos, tmp_path / "out", "--pool", pool).returncode == 0
    assert FeatureFolder(tmp_path / "out").read("000.png").size


@pytest.mark.parametrize("option", ["out", "model", "weights", "devices", "source"])
def test_nul_in_any_option(photos, tmp_path, option):
    (tmp_path / "run.yaml").write_text(json.dumps({"out": str(tmp_path / "o"), option: "a\0b"}))
    source = [] if option == "source" else [photos]
    done = sail("extract", *source, "--config", tmp_path / "run.yaml")
    assert says_one_line(done, f"--{option} cannot hold a NUL character")


def test_a_file_of_weights_that_is_none(photos, tmp_path):
    pytest.importorskip("timm")
    for name, content in {"x.safetensors": b"{", "y.pth": b"\x80\x02.", "z.bin": b""}.items():
        (tmp_path / name).write_bytes(content)
        model = ["--model", "timm/vit_tiny_patch16_224", "--weights", tmp_path / name, "--devices", "cpu"]
        assert says_one_line(sail("extract", photos, "--out", tmp_path / "o", *model), name)


def test_devices_that_hold_nothing(photos, tmp_path):
    assert says_one_line(sail("extract", photos, "--out", tmp_path / "o", *MODEL[:2], "--devices", "meta"), "meta")
