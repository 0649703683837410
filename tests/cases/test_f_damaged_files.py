"""Group F by the hundred: each file that a command reads is damaged in each of many ways, and the command says so.

A command may also do without the file, or write it again; it never ends in a traceback, in several lines, or not at
all.
"""

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import pyarrow
import pytest
from case_helpers import MODEL, sail
from helpers import noise, save_images
from PIL import Image
from pyarrow import parquet

RAW = ["--model", "raw/14", "--device", "cpu"]
EXTRACT = ["extract", "photos", "--out", "grids", *MODEL]
ROWS = ["extract", "photos", "--out", "rows", "--pool", "mean", *MODEL]
PROBE = ["probe", "photos", "--out", "probed", "--probes", "ridge", "--no-plots", *RAW]
PROBE_ROWS = ["probe", "rows", "--out", "probed_rows", "--probes", "ridge", "--no-plots", "--device", "cpu"]
TRAIN = [
    *("segment", "train", "pairs", "--out", "head", *RAW, "--class_map", "classes.json", "--overlays", "1"),
    *("--steps", "2", "--warmup", "0", "--batch_size", "1", "--crop", "28", "--resize", "28", "--save_every", "1"),
]
PREDICT = ["segment", "predict", "photos/a", "--head", "head", "--out", "maps", "--device", "cpu"]
CHAT = ["chat", "--input", "asked.jsonl", "--output", "answers.jsonl", "--max_new_tokens", "1", "--device", "cpu"]

TARGETS = {
    "grids/run.json": [EXTRACT, ["pca", "--features", "grids", "--out", "a.png"]],
    "grids/journal.jsonl": [EXTRACT],
    "grids/index.parquet": [["pca", "--features", "grids", "--out", "a.png"]],
    "grids/features/a/000.png.npy": [["pca", "--features", "grids", "--out", "a.png"]],
    "rows/features_00000.npy": [[*PROBE_ROWS[:3], "again", *PROBE_ROWS[4:]], ROWS],
    "rows/journal.jsonl": [ROWS, [*ROWS, "--overwrite"]],
    "probed/results.jsonl": [PROBE],
    "probed/heads/raw-pixels-native/ridge-seed0/result.json": [PROBE],
    "head/run.json": [TRAIN, [*TRAIN, "--overwrite"]],
    "head/checkpoint.pt": [TRAIN],
    "head/log.jsonl": [TRAIN],
    "head/pictures.jsonl": [TRAIN, [*TRAIN, "--overwrite"]],
    "head/head.json": [PREDICT],
    "head/head.safetensors": [PREDICT],
    "maps/run.json": [PREDICT],
    "maps/journal.jsonl": [PREDICT, [*PREDICT, "--overwrite"]],
    "classes.json": [TRAIN],
    "pairs/labels/train/0.png": [TRAIN],
    "asked.jsonl": [CHAT],
    "answers.jsonl": [CHAT],
    "answers.jsonl.run.json": [CHAT],
    "answers.jsonl.aside.jsonl": [CHAT],
    "options.yaml": [["extract", "photos", "--out", "again", "--config", "options.yaml"]],
    "list.txt": [["extract", "list.txt", "--out", "again", *MODEL]],
    "list.csv": [["probe", "list.csv", "--out", "again", "--probes", "ridge", "--no-plots", *RAW]],
    "list.parquet": [["probe", "list.parquet", "--out", "again", "--probes", "ridge", "--no-plots", *RAW]],
}

BELONGS_TO = {
    "classes.json": "classes",
    "head/head.json": "maps holds a run with other settings",
    "asked.jsonl": "answers.jsonl line 1 answers another question",
    "answers.jsonl.run.json": "answers.jsonl was begun with other settings",
}
"""What is said of a file that is read rightly, and does not go with another."""

CONTENTS = {
    "empty": b"",
    "a brace": b"{",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "a number": b"3\n",
    "huge numbers": b'{"settings": {"layers": [1e999, ' + b"9" * 5000 + b']}, "index": 1e400}\n',
    "the same key twice": b'{"key": 1, "key": {"result": NaN}}\n',
    "deep nesting": b"[" * 50_000 + b"\n",
    "NUL bytes": bytes(300),
    "no UTF-8": b"\xff\xfe\x80\n",
    "UTF-16": '{"prompt": "a", "settings": {}}\n'.encode("utf-16"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}

SOME = ("half of it", "a list", "huge numbers", "NUL bytes")
SLOW = (TRAIN, PREDICT, CHAT)


def as_folder(path):
    path.mkdir()
    (path / "x").write_text("x")


def as_socket(path):
    # Names of sockets are short, so they are bound by a relative one.
    before = os.getcwd()
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(before)


KINDS = {
    "a folder": as_folder,
    "a FIFO": os.mkfifo,
    "a socket": as_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which every command has run once."""
    whole = tmp_path_factory.mktemp("damage") / "whole"
    folder = whole.parent / "work"
    for name in "ab":
        save_images(folder / "photos" / name, 4, seed=ord(name), sides=(15, 30))
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            path = folder / "pairs" / kind / split / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(noise(28, 28) if kind == "images" else noise(28, 28)[..., 0] % 2).save(path)
    rows = [(f"photos/{name}/{number:03d}.png", name) for name in "ab" for number in range(4)]
    (folder / "list.txt").write_text("".join(f"{path}\n" for path, _ in rows))
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    table = pyarrow.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]})
    parquet.write_table(table, folder / "list.parquet")
    (folder / "classes.json").write_text('{"0": "a", "1": "b"}')
    (folder / "options.yaml").write_text("model: raw/14\ndevices: cpu\n")
    asked = [{"prompt": f"{number}?", "id": number} for number in range(3)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    before = os.getcwd()
    os.chdir(folder)
    for command in (EXTRACT, ROWS, PROBE, PROBE_ROWS, TRAIN, PREDICT, CHAT):
        done = sail(*command)
        assert done.returncode == 0, done.stderr
    os.chdir(before)
    # As a run leaves it that has met an error, and was killed when it tried again.
    lines = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text(lines[0])
    aside = [{"index": number, "line": json.loads(lines[number])} for number in (1, 2)]
    (folder / "answers.jsonl.aside.jsonl").write_text("".join(json.dumps(line) + "\n" for line in aside))
    return Path(shutil.copytree(folder, whole))


@pytest.fixture
def folder(whole, monkeypatch):
    """The folder in which the commands run: where they have run before, since some results name it."""
    monkeypatch.chdir(whole.parent / "work")
    return whole.parent / "work"


@pytest.fixture(autouse=True)
def no_hanging():
    """Ends a test that waits for a FIFO."""

    def end(*_):
        raise TimeoutError("it hangs")

    earlier = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def check(done, name, trouble):
    """A command ends with 0 or 1, or in one line that names the file."""
    assert done.returncode in (0, 1, 2), (trouble, done.stderr)
    assert "Traceback" not in done.stderr, trouble
    assert "please report" not in done.stderr, (trouble, done.stderr)
    if done.returncode == 2:
        ours = [line for line in done.stderr.splitlines() if line.startswith("sail: ")]
        assert len(ours) == 1, (trouble, done.stderr)
        assert len(ours[0]) < 1010, trouble
        named = (Path(name).name, Path(name).parts[0], BELONGS_TO.get(name, name))
        assert any(one in ours[0] for one in named), (trouble, ours[0])


def restore(folder, whole, name):
    """Puts back what a command may have changed, apart from the file itself."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    path = folder / name
    path.unlink()
    return path


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_contents(whole, folder, name):
    statuses = set()
    content = (whole / name).read_bytes()
    damages = {"half of it": content[: len(content) // 2], **CONTENTS}
    for trouble, damaged in damages.items():
        # Commands that compute take their time, so that they see some of them, and so does a second command.
        for command in TARGETS[name] if trouble in SOME else [] if TARGETS[name][0] in SLOW else TARGETS[name][:1]:
            restore(folder, whole, name).write_bytes(damaged)
            done = sail(*command)
            check(done, name, (trouble, *command[:2]))
            statuses.add(done.returncode)
    assert statuses - {0}, "none of it was noticed"


@pytest.mark.parametrize("name", TARGETS)
def test_other_things_in_place_of_a_file(whole, folder, name):
    for trouble, put in KINDS.items():
        command = TARGETS[name][0]
        put(restore(folder, whole, name))
        check(sail(*command), name, (trouble, *command[:2]))


def variants(content):
    """The same JSON with one value of another type, or without it."""

    def places(value, depth):
        pairs = value.items() if isinstance(value, dict) else list(enumerate(value))[:1]
        for key, inner in pairs:
            yield (key,)
            if depth and isinstance(inner, (dict, list)):
                yield from ((key, *rest) for rest in places(inner, depth - 1))

    for place in places(content, 2) if isinstance(content, (dict, list)) else ():
        for other in (None, -1, [], {"a": None}, "x", "drop"):
            copy = json.loads(json.dumps(content))
            inner = copy
            for key in place[:-1]:
                inner = inner[key]
            if other == "drop":
                del inner[place[-1]]
            else:
                inner[place[-1]] = other
            yield (place, other), copy


LINES = [name for name in TARGETS if name.endswith((".json", ".jsonl"))]


@pytest.mark.parametrize("name", LINES)
def test_values_of_another_type(whole, folder, name):
    text = (whole / name).read_text()
    first, _, rest = text.partition("\n") if name.endswith("l") else (text, "", "")
    command = TARGETS[name][0]
    every = list(variants(json.loads(first)))
    for trouble, damaged in every[:: max(1, len(every) // (5 if command in SLOW else 12))]:
        restore(folder, whole, name).write_text(json.dumps(damaged) + "\n" + rest)
        check(sail(*command), name, (trouble, *command[:2]))
