"""Images, lists and shards on other machines: a file system in memory, and a web server on this one."""

import re
import sys
import tarfile
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from case_helpers import extract, says_one_line, statuses
from helpers import save_images

from sail_encoder import FeatureFolder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs, lists of them, and shards, in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    save_images(folder / "d", 4)
    (folder / "list.txt").write_text("".join(f"d/00{number}.png\n" for number in range(4)))
    (folder / "list.csv").write_text("path,label\n" + "".join(f"d/00{number}.png,{number}\n" for number in range(4)))
    for number in range(2):
        with tarfile.open(folder / f"s-{number:03d}.tar", "w") as shard:
            shard.add(folder / "d" / f"00{number}.png", "a.png")
    return folder


@pytest.fixture
def memory(photos):
    """The same in memory."""
    files = fsspec.filesystem("memory")
    for path in photos.rglob("*.*"):
        files.pipe_file(f"/bucket/{path.relative_to(photos)}", path.read_bytes())
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


class WholeFiles(SimpleHTTPRequestHandler):
    """Gives files from their beginning to their end."""

    def log_message(self, *_):
        """Says nothing."""


class Ranges(WholeFiles):
    """Gives also parts of files."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            super().do_GET()
            return
        first, last = map(int, asked.groups())
        content = Path(self.translate_path(self.path)).read_bytes()
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@contextmanager
def serving(folder, handler):
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def server(photos):
    """The same on the web."""
    with serving(photos, Ranges) as address:
        yield address


def same(out, expected):
    """Whether two folders hold the same features, in order."""
    ours, theirs = FeatureFolder(out), FeatureFolder(expected)
    pairs = zip(ours.entries, theirs.entries, strict=True)
    return all(np.array_equal(ours.read(one), theirs.read(other)) for one, other in pairs)


@pytest.mark.parametrize("source", ["d", "d/*.png", "list.txt", "list.csv", "s-{000..001}.tar", "d/00{0,1,2,3}.png"])
def test_what_lies_in_a_bucket(photos, memory, tmp_path, source):
    done = extract(f"{memory}/{source}", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert extract(photos / source, tmp_path / "here").returncode == 0
    assert list(statuses(tmp_path / "out")) == list(statuses(tmp_path / "here"))
    assert same(tmp_path / "out", tmp_path / "here")
    # Again, there is nothing to do.
    assert "0 of" in extract(f"{memory}/{source}", tmp_path / "out").stderr


@pytest.mark.parametrize("source", ["d/00{0..3}.png", "list.txt", "list.csv", "s-{000..001}.tar"])
def test_what_lies_on_the_web(photos, server, tmp_path, source):
    done = extract(f"{server}/{source}", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert extract(photos / source, tmp_path / "here").returncode == 0
    assert same(tmp_path / "out", tmp_path / "here")


def test_a_shard_on_a_server_that_gives_whole_files(photos, tmp_path):
    with serving(photos, WholeFiles) as address:
        assert extract(f"{address}/list.txt", tmp_path / "files").returncode == 0
        assert extract(f"{address}/s-000.tar", tmp_path / "shard").returncode == 1
    assert "its server sends whole files and no parts" in (tmp_path / "shard" / "failures.csv").read_text()


def test_a_list_here_of_images_there(photos, memory, server, tmp_path):
    for start in (memory, server):
        (tmp_path / "list.txt").write_text("".join(f"{start}/d/00{number}.png\n" for number in range(4)))
        out = tmp_path / start.partition(":")[0]
        assert extract(tmp_path / "list.txt", out).returncode == 0
        assert extract(photos / "d", tmp_path / "here").returncode == 0
        assert same(out, tmp_path / "here")


def test_an_image_that_has_changed_in_a_bucket_is_done_again(memory, tmp_path):
    assert extract(f"{memory}/d", tmp_path / "out").returncode == 0
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/d/000.png", files.cat_file("/bucket/d/001.png"))
    assert "1 of 4 images to do" in extract(f"{memory}/d", tmp_path / "out").stderr
    folder = FeatureFolder(tmp_path / "out")
    assert np.array_equal(folder["000.png"], folder["001.png"])


def test_what_is_not_there(memory, server, tmp_path):
    for start in (memory, server):
        (tmp_path / "list.txt").write_text(f"{start}/d/000.png\n{start}/d/nothing.png\n")
        out = tmp_path / start.partition(":")[0]
        assert extract(tmp_path / "list.txt", out).returncode == 1
        assert f"no such file: '{start}/d/nothing.png'" in (out / "failures.csv").read_text()
        assert says_one_line(extract(f"{start}/nothing.txt", tmp_path / "o"), "nothing.txt: no such file")
    assert says_one_line(extract(f"{memory}/d/*.jpg", tmp_path / "o"), "nothing matches")


def test_a_shard_that_is_damaged_there(memory, tmp_path):
    fsspec.filesystem("memory").pipe_file("/bucket/bad.tar", b"x" * 2000)
    assert says_one_line(extract(f"{memory}/bad.tar", tmp_path / "o"), "bad.tar is not an uncompressed tar file")


def test_a_protocol_that_lacks_its_package(tmp_path, monkeypatch):
    for name, package in (("s3fs", "s3fs"), ("gcsfs", "gcsfs")):
        monkeypatch.setitem(sys.modules, name, None)
        protocol = {"s3fs": "s3", "gcsfs": "gs"}[name]
        done = extract(f"{protocol}://bucket/a.png", tmp_path / "o")
        assert says_one_line(done, f"{protocol}:// needs a package that is not installed: pip install {package}")
    assert says_one_line(extract("nothing://bucket/a.png", tmp_path / "o"), "nothing://bucket/a.png")


def test_images_of_two_places_have_no_folder_in_common(photos, memory, tmp_path):
    done = extract([photos / "d", f"{memory}/d"], tmp_path / "o")
    assert says_one_line(done, "have no folder in common; give the images of one place at a time")
