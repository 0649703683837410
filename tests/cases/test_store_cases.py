"""Inputs that have failed before: what lies in the output folder, what is taken from it, and how it is read."""

import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pytest
from case_helpers import MODEL, extract, sail, says_one_line, statuses
from helpers import noise, save_images
from PIL import Image
from pyarrow import parquet

from sail_encoder import FeatureFolder, UserError


@pytest.fixture
def photos(tmp_path):
    return save_images(tmp_path / "photos", 3)


@pytest.fixture
def out(photos, tmp_path):
    assert extract(photos, tmp_path / "out").returncode == 0
    return tmp_path / "out"


def test_files_of_another_tool_stay(photos, tmp_path):
    """A4: neither overwritten nor deleted."""
    features = tmp_path / "out" / "features"
    features.mkdir(parents=True)
    for name in ("000.png.npy", "other.npy"):
        (features / name).write_bytes(b"mine")
    done = extract(photos, tmp_path / "out")
    assert done.returncode == 1
    assert statuses(tmp_path / "out") == {"000.png": "failed", "001.png": "done", "002.png": "done"}
    assert "another program has left a file there" in (tmp_path / "out" / "failures.csv").read_text()
    assert extract(photos, tmp_path / "out", "--overwrite", "true", "--resize", "28").returncode == 1
    assert [(features / name).read_bytes() for name in ("000.png.npy", "other.npy")] == [b"mine", b"mine"]


@pytest.mark.parametrize("name", ["index.parquet", "failures.csv"])
def test_tables_of_another_tool_stay(photos, tmp_path, name):
    """A4"""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert says_one_line(extract(photos, tmp_path / "out"), f"has {name} but no run.json")
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_shard_of_another_tool_stays(photos, tmp_path):
    """A4: also one whose name a shard of ours would have."""
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "features_00000.npy"
    mine.write_text("mine")
    for options in ([], ["--overwrite", "true", "--resize", "28"]):
        assert extract(photos, tmp_path / "out", "--pool", "mean", *options).returncode == 0
        assert len(FeatureFolder(tmp_path / "out").matrix()) == 3
        assert mine.read_text() == "mine"


def test_what_a_kill_has_left_unjournaled_is_ours(photos, out):
    """A4, the other way round: features that were put into place just before a kill are written again."""
    (out / "journal.jsonl").write_text("")
    work = out / ".work" / "run"
    work.mkdir(parents=True)
    (work / "placing.json").write_text(json.dumps([f"features/{name}.npy" for name in sorted(os.listdir(photos))]))
    assert extract(photos, out).returncode == 0
    assert not work.exists()


@pytest.mark.parametrize(
    ("run", "whose"),
    [
        ({"settings": {"a": 1}, "runs": []}, "another program"),
        ({"settings": {"training_images": "3 named x"}, "versions": {}}, "sail segment train"),
        ({"command": "segment predict", "format": 2, "settings": {"inference": {}}}, "sail segment predict"),
    ],
)
def test_each_command_knows_its_own_runs(photos, tmp_path, run, whose):
    """A3"""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    (tmp_path / "out" / "journal.jsonl").touch()
    done = extract(photos, tmp_path / "out", "--overwrite", "true")
    assert says_one_line(done, f"run.json is of {whose}, so it is not overwritten")
    assert sorted(os.listdir(tmp_path / "out")) == ["journal.jsonl", "run.json"]


def test_training_does_not_delete_an_extraction(out):
    """A3"""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for command in (["segment", "train", "scenes"], ["segment", "predict", "x", "--head", "h"]):
        assert sail(*command, "--out", out, "--overwrite", "true").returncode == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


NO_LOCKS = """
import errno, fcntl, os, sys
def flock(file, operation):
    {body}
fcntl.flock = flock
from sail_cli import main
sys.exit(main(sys.argv[1:]))
"""


def extract_with_flock(body, source, out, *arguments):
    """`sail extract` where locks work in another way; starts it and returns the process."""
    command = [sys.executable, "-c", NO_LOCKS.format(body=body), "extract", str(source), "--out", str(out), *MODEL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_without_locks_it_goes_on_with_one_warning(photos, tmp_path, name):
    """A6"""
    body = f"raise OSError(errno.{name}, os.strerror(errno.{name}))"
    process = extract_with_flock(body, photos, tmp_path / "out")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("cannot be locked") == 1
    assert f"{tmp_path / 'out'} cannot be locked" in errors


def wait_for(condition, seconds=100):
    for _ in range(seconds * 50):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it has not come to that")


def test_work_of_living_shards_stays_where_locks_say_nothing(tmp_path):
    """A5"""
    photos = save_images(tmp_path / "photos", 40)
    os.mkfifo(tmp_path / "gate")
    out = tmp_path / "out"
    options = ["--pool", "mean", "--token_budget", "40"]
    slow = extract_with_flock("return None", photos, out, "--shard", "0/2", *options)
    journal = out / "journal_0_of_2.jsonl"
    wait_for(lambda: slow.poll() is not None or (journal.exists() and journal.stat().st_size))
    slow.send_signal(signal.SIGSTOP)
    try:
        assert extract_with_flock("return None", photos, out, "--shard", "1/2", *options).wait(120) == 0
        assert list((out / ".work" / "run_0_of_2").glob("*.raw")), "what it was writing is gone"
    finally:
        slow.send_signal(signal.SIGCONT)
    assert slow.wait(120) == 0
    assert statuses(out) == {f"{number:03d}.png": "done" for number in range(40)}


@pytest.mark.parametrize(
    ("owner", "age", "stays"),
    [
        ({"machine": "elsewhere 1", "pid": 1, "started": "1"}, 5, True),
        ({"machine": "elsewhere 1", "pid": 1, "started": "1"}, 86400, False),
        (None, 5, False),
    ],
)
def test_only_work_of_the_dead_is_removed(photos, out, owner, age, stays):
    """A5: by host, process and heartbeat."""
    work = out / ".work" / "run_0_of_9"
    work.mkdir(parents=True)
    (work / "features_0_of_9_00000.npy.raw").write_bytes(b"rows")
    if owner:
        (work / "owner.json").write_text(json.dumps(owner))
        os.utime(work / "owner.json", (time.time() - age,) * 2)
    assert extract(photos, out).returncode == 0
    assert work.exists() == stays


def test_work_of_a_killed_process_of_this_machine_is_removed(photos, out):
    """A5"""
    process = extract_with_flock("return None", photos, out, "--shard", "3/9")
    wait_for(lambda: (out / ".work" / "run_3_of_9" / "owner.json").exists() or process.poll() is not None)
    process.kill()
    process.wait()
    said = json.loads((out / ".work" / "run_3_of_9" / "owner.json").read_text())
    assert said["machine"].startswith(socket.gethostname())
    assert said["pid"] == process.pid
    assert extract(photos, out).returncode == 0
    assert not (out / ".work").exists()


@pytest.mark.parametrize("pool", ["none", "mean"])
@pytest.mark.parametrize("what", ["journal.jsonl", "features"])
def test_what_is_deleted_while_a_run_writes_is_said(tmp_path, what, pool):
    """A7"""
    photos, out = save_images(tmp_path / "photos", 60), tmp_path / "out"
    command = [sys.executable, "-m", "sail_cli", "extract", str(photos), "--out", str(out), *MODEL]
    options = ["--token_budget", "40", "--pool", pool]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
    journal = out / "journal.jsonl"
    wait_for(lambda: process.poll() is not None or (journal.exists() and journal.stat().st_size))
    process.send_signal(signal.SIGSTOP)
    victims = list((out / "features").glob("*")) if pool == "none" else list((out / ".work").rglob("*.raw"))
    for victim in [journal] if what == "journal.jsonl" else victims[:1]:
        victim.unlink()
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "deleted" in errors or "No such file" in errors
    assert extract(photos, out, *options).returncode in (0, 1)


def test_a_file_and_a_folder_of_one_name(tmp_path):
    """C4: the one that cannot be stored is recorded, and the run ends."""
    photos = save_images(tmp_path / "photos", 2)
    save_images(photos / "000.png.npy", 2)
    done = extract(photos, tmp_path / "out")
    assert done.returncode == 1
    found = statuses(tmp_path / "out")
    assert sorted(found.values()).count("done") >= 2
    assert "failed" in found.values()
    assert found["001.png"] == "done"


def test_a_thousand_grids_need_no_open_files(out):
    """E2"""
    folder = FeatureFolder(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        grids = [folder.read(entry) for _ in range(200) for entry in folder.entries]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(grids) == 600
    assert all(grid.shape[:2] == entry.grid for grid, entry in zip(grids, folder.entries, strict=False))


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_a_cache_is_no_state(tmp_path, pool):
    """E3"""
    photos = save_images(tmp_path / "photos", 20)
    extract(photos, tmp_path / "out", "--pool", pool)
    folder = FeatureFolder(tmp_path / "out")
    before = len(pickle.dumps(folder))
    expected = [folder.read(entry) for entry in folder.entries]
    assert folder.entries.rows_of(["003.png"]).tolist() == [3]
    assert len(pickle.dumps(folder)) == before < 20_000
    again = pickle.loads(pickle.dumps(folder))
    assert all((again[entry.path] == grid).all() for entry, grid in zip(again.entries, expected, strict=True))
    assert again.settings == folder.settings


def test_a_folder_of_features_by_name(out):
    folder = FeatureFolder(out)
    assert len(folder) == 3
    assert (folder["001.png"] == folder.read(folder.entries[1])).all()
    assert (folder.read("001.png", rows=slice(1, 2)) == folder["001.png"][1:2]).all()
    assert "001.png" in folder
    assert "x.png" not in folder
    assert len(repr(folder)) < 200
    with pytest.raises(UserError, match=r"has no features of 'x\.png'; there are 3 images, such as '000\.png'"):
        folder["x.png"]


def test_rows_of_one_layer_of_several(tmp_path):
    photos = save_images(tmp_path / "photos", 2)
    sail("extract", photos, "--out", tmp_path / "out", "--layers", "last2", "--devices", "cpu")
    folder = FeatureFolder(tmp_path / "out")
    for entry in folder.entries:
        whole = np.load(tmp_path / "out" / entry.file)
        for place, layer in enumerate(folder.layers):
            assert (folder.read(entry, layer) == whole[place]).all()
            assert (folder.read(entry, layer, slice(1, 3)) == whole[place, 1:3]).all()


def damage_index(out):
    (out / "index.parquet").write_bytes(b"PAR1 damaged PAR1")


def drop_columns(out):
    table = parquet.read_table(out / "index.parquet")
    parquet.write_table(table.drop_columns(["grid_height"]), out / "index.parquet")


def shorten(out):
    with (out / "features" / "000.png.npy").open("r+b") as file:
        file.truncate(200)


def pickle_objects(out):
    np.save(out / "features" / "000.png.npy", np.array([{"a": 1}], object), allow_pickle=True)


def other_shape(out):
    np.save(out / "features" / "000.png.npy", np.zeros((1, 1, 588), np.float16))


def remove(out):
    (out / "features" / "000.png.npy").unlink()


def no_layers(out):
    run = json.loads((out / "run.json").read_text())
    run["settings"]["layers"] = 3
    (out / "run.json").write_text(json.dumps(run))


def no_size(out):
    run = json.loads((out / "run.json").read_text())
    for name in ("size", "resize"):
        run["settings"].pop(name, None)
    (out / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_index, r"index\.parquet is damaged"),
        (drop_columns, r"index\.parquet is damaged"),
        (shorten, r"000\.png\.npy is damaged"),
        (pickle_objects, r"000\.png\.npy is damaged"),
        (other_shape, r"000\.png\.npy is damaged: its shape is \[1, 1, 588\], for a grid of"),
        (remove, r"000\.png\.npy is missing"),
        (no_layers, r"run\.json is damaged, or of no extraction"),
        (no_size, r"run\.json is damaged, or of no extraction .*size"),
    ],
)
def test_a_damaged_folder_of_features_is_one_line(out, damage, words):
    """F"""
    damage(out)
    with pytest.raises(UserError, match=words) as error:
        FeatureFolder(out).read("000.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        '[{"key": 3, "size": 1}]',
        '[{"key": "a.png", "size": "large"}]',
        '[{"key": "a.png", "size": 1, "grid": [1]}]',
        '[{"key": "a.png", "size": 1, "file": "../../x.npy"}]',
        '[{"key": "a.png", "size": 1, "shape": ["x"]}]',
        '{"a": []}',
        "[" * 100000,
    ],
)
def test_a_damaged_journal_is_one_line(photos, out, line):
    """F: values of another type, and paths that lead out of the folder."""
    with (out / "journal.jsonl").open("a") as journal:
        journal.write(f"{line}\n")
    assert says_one_line(extract(photos, out), "journal.jsonl line 2 is damaged, or of another program")


def test_a_journal_cannot_have_files_elsewhere_deleted(photos, out, tmp_path):
    victim = tmp_path / "x.npy"
    victim.write_text("mine")
    with (out / "journal.jsonl").open("a") as journal:
        journal.write('[{"key": "a", "size": 1, "file": "../x.npy"}]\n')
    assert extract(photos, out, "--overwrite", "true", "--resize", "28").returncode == 0
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("content", ["[", "[]", '{"settings": []}', "\udcff", '{"settings": {}, "format": 99}'])
def test_a_damaged_run_file_is_one_line(photos, out, content):
    """F"""
    (out / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    done = extract(photos, out)
    assert says_one_line(done, "run.json")
    assert (out / "run.json").read_bytes() == content.encode("utf-8", "surrogateescape")


def test_a_second_signal_ends_a_run_that_hangs(tmp_path):
    """C1: also while a thread waits for a file that never comes."""
    photos = save_images(tmp_path / "photos", 3)
    script = (
        "import sys, threading, time, PIL.Image\n"
        "opened = PIL.Image.open\n"
        "def hang(*a, **k):\n"
        "    if threading.current_thread() is threading.main_thread():\n        return opened(*a, **k)\n"
        "    print('reading', file=sys.stderr, flush=True)\n    time.sleep(600)\n"
        "PIL.Image.open = hang\n"
        "from sail_cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "extract", str(photos), "--out", str(tmp_path / "out"), *MODEL]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert any("reading" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        assert any("once more to stop at once" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()


def test_names_of_shards_may_be_mixed(tmp_path):
    """Images of an earlier list that are not in this one stay in the index, behind the others."""
    photos = save_images(tmp_path / "photos", 4)
    assert extract(photos, tmp_path / "out").returncode == 0
    (photos / "001.png").unlink()
    Image.fromarray(noise(30, 30)).save(photos / "new.png")
    assert extract(photos, tmp_path / "out").returncode == 0
    assert list(statuses(tmp_path / "out")) == ["000.png", "002.png", "003.png", "new.png", "001.png"]
    assert pyarrow.parquet.read_metadata(tmp_path / "out" / "index.parquet").num_rows == 5
