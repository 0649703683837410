"""Inputs that have failed before: folders, lists and shards of images."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from case_helpers import extract, sail, says_one_line, statuses
from helpers import noise, save_images
from PIL import Image
from pyarrow import parquet


@pytest.fixture
def photos(tmp_path):
    return save_images(tmp_path / "photos", 3)


def encoded(seed=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(noise(28, 28, seed)).save(buffer, kind)
    return buffer.getvalue()


def add(shard, name, content, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    shard.addfile(member, io.BytesIO(content))


def grid_of(out, key):
    return np.load(out / "features" / f"{key}.npy").astype(np.float32)


def test_a_sparse_member_of_a_tar_is_read_rightly(tmp_path):
    """B2: a bitmap whose hole tar leaves out."""
    pixels = np.zeros((280, 280, 3), np.uint8)
    pixels[:14, :14], pixels[-14:, -14:] = 200, 90
    whole = tmp_path / "whole.bmp"
    Image.fromarray(pixels).save(whole)
    content = whole.read_bytes()
    with (tmp_path / "holes.bmp").open("wb") as file:
        for start in range(0, len(content), 4096):
            block = content[start : start + 4096]
            if any(block):
                file.seek(start)
                file.write(block)
        file.truncate(len(content))
    subprocess.run(["tar", "-S", "-cf", "s.tar", "holes.bmp", "whole.bmp"], cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "s.tar") as shard:
        if not shard.getmember("holes.bmp").issparse():
            pytest.skip("this file system keeps no holes")
    assert extract(tmp_path / "s.tar", tmp_path / "out").returncode == 0
    assert (grid_of(tmp_path / "out", "s/holes.bmp") == grid_of(tmp_path / "out", "s/whole.bmp")).all()
    assert grid_of(tmp_path / "out", "s/holes.bmp").std() > 0


def test_files_that_are_passed_over_are_counted(photos, tmp_path):
    """B7"""
    for name in ("a.heic", "b.cr2", "c.cr2", "d.mp4"):
        (photos / name).touch()
    (photos / "e.jpe").write_bytes(encoded(kind="JPEG"))
    done = extract(photos, tmp_path / "out")
    assert "4 other files passed over: 2 .cr2, 1 .heic, 1 .mp4" in done.stderr
    assert statuses(tmp_path / "out")["e.jpe"] == "done"


@pytest.mark.parametrize("resize", ["native", "28"])
def test_a_dry_run_over_missing_files_says_so(tmp_path, resize):
    """B10"""
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(5000)))
    done = extract(tmp_path / "list.txt", tmp_path / "out", "--dry_run", "true", "--resize", resize)
    assert "200 of 200 that were looked at cannot be read, such as 0.png" in done.stdout
    assert not (tmp_path / "out").exists()


def fifo_in_a_folder(folder):
    os.mkfifo(folder / "a.png")
    return folder


def fifo_by_name(folder):
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


def fifo_in_a_list(folder):
    os.mkfifo(folder / "a.png")
    (folder / "list.txt").write_text("000.png\na.png\n")
    return folder / "list.txt"


def fifo_as_a_list(folder):
    os.mkfifo(folder / "list.txt")
    return folder / "list.txt"


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (fifo_in_a_folder, 0, "a.png (a FIFO); only regular files are read"),
        (fifo_by_name, 2, "a.png is a FIFO, and only regular files are read"),
        (fifo_in_a_list, 1, "1 images failed"),
        (fifo_as_a_list, 2, "list.txt is a FIFO, and only regular files are read"),
    ],
)
def test_only_regular_files_are_read(photos, tmp_path, make, status, words):
    """C1"""
    source = make(photos)
    done = extract(source, tmp_path / "out", timeout=300)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    if status == 1:
        assert "is a FIFO" in (tmp_path / "out" / "failures.csv").read_text()
    assert extract(source, tmp_path / "dry", "--dry_run", "true", timeout=300).returncode == (2 if status == 2 else 0)


def test_of_members_of_one_name_the_last_counts(tmp_path):
    """C5"""
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for seed in (1, 2):
            add(shard, "a.png", encoded(seed))
    (tmp_path / "a.png").write_bytes(encoded(2))
    assert extract(tmp_path / "s.tar", tmp_path / "out").returncode == 0
    assert extract(tmp_path / "a.png", tmp_path / "alone").returncode == 0
    assert (grid_of(tmp_path / "out", "s/a.png") == grid_of(tmp_path / "alone", "a.png")).all()


def test_what_macos_leaves_in_a_tar_is_passed_over(tmp_path):
    """E5"""
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for name in ("x.png", "._x.png", "d/._y.png", ".hidden/z.png"):
            add(shard, name, encoded())
    assert extract(tmp_path / "s.tar", tmp_path / "out").returncode == 0
    assert list(statuses(tmp_path / "out")) == ["s/x.png"]


@pytest.mark.parametrize("place", ["../photos", "~/photos", "link", "../home/link/../photos"])
def test_folders_are_found_however_they_are_written(tmp_path, place, monkeypatch):
    """E1"""
    for name in ("cat", "dog"):
        save_images(tmp_path / "photos" / name, 8, seed=ord(name[0]))
    home = tmp_path / "home"
    home.mkdir()
    for above in (home / "link", home / "photos"):
        above.symlink_to(tmp_path / "photos")
    settings = ["--probes", "ridge", "--plots", "false", "--resize", "28", "--out", "out", "--model", "raw/14"]
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    done = sail("probe", place, *settings)
    assert done.returncode == 0, done.stderr


def test_labels_in_a_shard_that_was_made_from_a_folder(tmp_path):
    """E4"""
    from evals.datasets.loading import load_dataset

    (tmp_path / "d").mkdir()
    for number in range(3):
        (tmp_path / "d" / f"{number:04d}.png").write_bytes(encoded(number))
        (tmp_path / "d" / f"{number:04d}.cls").write_text(str(number))
    subprocess.run(["tar", "-cf", "s.tar", "-C", "d", "."], cwd=tmp_path, check=True)
    dataset = load_dataset(str(tmp_path / "s.tar"))
    assert dict(zip(dataset.keys, dataset.targets.tolist(), strict=True)) == {f"s/000{n}.png": str(n) for n in range(3)}


@pytest.mark.parametrize("line", ["{} 3\n", "{}\tcat\n", "{}, a tabby cat\n", "{}\r\n", "  {}  \n"])
def test_lists_as_they_come(photos, tmp_path, line):
    """E10"""
    (photos / "list.txt").write_text("".join(line.format(f"00{n}.png") for n in range(3)), newline="")
    assert extract(photos / "list.txt", tmp_path / "out").returncode == 0
    assert list(statuses(tmp_path / "out")) == ["000.png", "001.png", "002.png"]


def test_a_line_that_is_not_like_the_others_is_named(photos, tmp_path):
    """E10"""
    (photos / "list.txt").write_text("000.png 1\n" * 150 + "001\n")
    assert says_one_line(extract(photos / "list.txt", tmp_path / "out"), "image 151: '001' is no path and a label")


def test_names_with_spaces_are_no_labels(tmp_path):
    for name in ("a b.png", "a.png copy.png", "x.png 3.png"):
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "list.txt").write_text("a b.png\na.png copy.png\nx.png 3.png\n")
    assert extract(tmp_path / "list.txt", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("braces", ["s-{000..002}.tar", "s-{000,001,002}.tar", "s-00{0..2}.tar", "s-{002..000}.tar"])
def test_braces_stand_for_shards(tmp_path, braces):
    """E10"""
    for number in range(3):
        with tarfile.open(tmp_path / f"s-{number:03d}.tar", "w") as shard:
            add(shard, "a.png", encoded(number))
    assert extract(tmp_path / braces, tmp_path / "out").returncode == 0
    assert sorted(statuses(tmp_path / "out")) == [f"s-00{number}/a.png" for number in range(3)]


def test_a_shard_that_braces_name_and_is_not_there(tmp_path):
    assert says_one_line(extract(tmp_path / "s-{0..2}.tar", tmp_path / "out"), "no file or folder")
    assert says_one_line(extract("s-{0..9999999}.tar", tmp_path / "out"), "10,000,000 names")


def test_a_thousand_nested_folders(tmp_path, monkeypatch):
    """F"""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "b.png").write_bytes(encoded())
    with monkeypatch.context() as here:
        here.chdir(folder)
        for _ in range(1000):
            os.mkdir("d")
            os.chdir("d")
        Path("a.png").write_bytes(encoded())
    try:
        assert extract(folder, tmp_path / "out").returncode == 0
        assert list(statuses(tmp_path / "out").values()) == ["done", "done"]
    finally:
        # Python's own way of removing folders comes to an end at this depth.
        subprocess.run(["rm", "-rf", folder, tmp_path / "out"], check=True)


def header_with(size):
    """The header of a member whose size is written in base 256, as for large ones."""
    member = tarfile.TarInfo("a.png")
    header = bytearray(member.tobuf())
    header[124:136] = (2**95 + size).to_bytes(12, "big") if size >= 0 else (2**96 + size).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    return bytes(header[:512])


@pytest.mark.parametrize("size", [2**40, 2**62, 2**70, -1, -512, -2048, -(2**40)])
def test_impossible_sizes_in_a_tar(tmp_path, size):
    """F"""
    (tmp_path / "s.tar").write_bytes(header_with(size) + b"\0" * 10240)
    assert says_one_line(extract(tmp_path / "s.tar", tmp_path / "out", timeout=300), "s.tar is")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda path: parquet.write_table(
                pyarrow.Table.from_arrays([pyarrow.array(["a.png"])] * 2, names=["path", "path"]), path
            ),
            "has several columns 'path'; keep one",
        ),
        (lambda path: path.write_bytes(b"PAR1" + b"\0" * 20 + b"PAR1"), "is not a parquet file, or is damaged"),
        (lambda path: path.touch(), "is not a parquet file, or is damaged"),
    ],
)
def test_lists_that_are_damaged(tmp_path, make, words):
    """F"""
    make(tmp_path / "list.parquet")
    assert says_one_line(extract(tmp_path / "list.parquet", tmp_path / "out"), words)
