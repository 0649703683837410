"""Inputs that have failed before: damaged checkpoints, configurations and numbers that nothing can hold."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from case_helpers import extract, sail, says_one_line
from helpers import save_images

import sail_encoder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photos"), 1)


@pytest.fixture
def folder(tmp_path):
    """A copy of sail-tiny."""
    shutil.copytree(Path(sail_encoder.__file__).parent / "tiny", tmp_path / "model")
    return tmp_path / "model"


def features_of(folder, photos):
    return sail("extract", photos, "--out", folder.parent / "out", "--model", folder, "--devices", "cpu")


def answer_of(folder, photos):
    return sail("chat", photos / "000.png", "what is this?", "--model", folder, "--device", "cpu")


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}},
        {"rope_parameters": {"rope_theta": None}},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 100_000_000},
        {"vision_patch_size": 0},
        {"vision_patch_size": 10**9},
        {"vocab_size": -1},
        {"hidden_act": "nope"},
        {"pad_token_id": 10**9},
        {"image_token_id": 10**9},
        {"image_token_id": -5},
        {"sliding_window": 0},
        {"quantization_config": 3},
    ],
)
def test_a_configuration_that_no_model_has(folder, photos, fields):
    """F, C2"""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    for done in (features_of(folder, photos), answer_of(folder, photos)):
        assert says_one_line(done, "config.json")
        assert "not foreseen" not in done.stderr


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"null", b"[]", b"\xff\xfe\0"])
def test_small_files_of_a_checkpoint_that_are_damaged(folder, photos, name, content):
    """F"""
    (folder / name).write_bytes(content)
    done = answer_of(folder, photos)
    assert says_one_line(done, "tokenizer" if name.startswith("token") else name)
    assert "not foreseen" not in done.stderr
    # Features need none of them.
    assert features_of(folder, photos).returncode == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ("null", "is no index of weight files"),
        ("{}", "is no index of weight files"),
        ('{"weight_map": {"a": 3}}', "is no index of weight files"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "names ../x.safetensors, which is not a file beside it"),
        ('{"weight_map": {"a": "/x.safetensors"}}', "names /x.safetensors, which is not a file beside it"),
    ],
)
def test_an_index_that_is_none(folder, photos, content, words):
    """F, C8"""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    assert says_one_line(features_of(folder, photos), words)


def pickled(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickled([1, 2]), "does not hold tensors by their names"),
        (pickled({"state_dict": {"a": torch.zeros(1)}}), "save what is under 'state_dict' alone"),
        (pickled(torch.zeros(2)), "does not hold tensors by their names"),
        (pickled({1: torch.zeros(1)}), "does not hold tensors by their names"),
        (b"\x80\x02.", "is damaged or incomplete"),
        (b"", "is damaged or incomplete"),
    ],
)
def test_a_pickle_that_holds_no_tensors(folder, photos, content, words):
    """F"""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert says_one_line(features_of(folder, photos), words)


@pytest.mark.parametrize("resize", ["1000006", "1400014", "short99999999", "9" * 5000])
def test_sizes_that_no_memory_holds(photos, tmp_path, resize):
    """F"""
    assert says_one_line(extract(photos, tmp_path / "out", "--resize", resize), "resize")
    assert says_one_line(sail("pca", photos / "000.png", "--out", tmp_path / "a.png", "--resize", resize), "resize")


def test_a_name_with_a_nul_character(photos, tmp_path):
    """F: only a file of options can hold one."""
    (tmp_path / "run.yaml").write_text('out: "a\\0b"\n')
    done = sail("extract", photos, "--config", tmp_path / "run.yaml")
    assert says_one_line(done, "--out cannot hold a NUL character")


def test_a_fifo_in_place_of_a_picture_or_a_head(photos, tmp_path):
    """C1"""
    os.mkfifo(tmp_path / "a.png")
    done = sail("pca", tmp_path / "a.png", "--out", tmp_path / "b.png", timeout=120)
    assert says_one_line(done, "a.png: is a FIFO, and only regular files are read")
    (tmp_path / "head").mkdir()
    os.mkfifo(tmp_path / "head" / "head.json")
    done = sail("segment", "predict", photos, "--head", tmp_path / "head", "--out", tmp_path / "out", timeout=120)
    assert says_one_line(done, "is a FIFO, and only regular files are read")


def test_options_from_a_photograph(photos):
    """F"""
    assert says_one_line(sail("extract", "--config", photos / "000.png"), "000.png: this is not YAML")
