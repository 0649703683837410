import errno
import io
import os
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from sail_encoder.images.sources import list_images
from sail_encoder.io.errors import SourceError


@pytest.fixture
def tree(tmp_path):
    for name in ("a/x.jpg", "a/y.PNG", "b/x.jpg", "b/.hidden.jpg", "b/deep/z.webp", "b/notes.txt", "b/data.npy"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "tree"


def keys(*sources):
    return [image.key for image in list_images([str(source) for source in sources]).images]


def test_a_folder_is_searched_through_in_order(tree):
    assert keys(tree) == ["a/x.jpg", "a/y.PNG", "b/deep/z.webp", "b/x.jpg"]
    listing = list_images([str(tree)])
    assert listing.root == str(tree)
    assert listing.images[0].with_status().size == len("a/x.jpg")
    assert listing.images[0].open() == str(tree / "a" / "x.jpg")


def test_several_folders_keep_their_names(tree):
    assert keys(tree / "b", tree / "a") == ["b/deep/z.webp", "b/x.jpg", "a/x.jpg", "a/y.PNG"]


def test_files_and_globs(tree):
    assert keys(tree / "b" / "x.jpg") == ["x.jpg"]
    assert keys(tree / "*" / "x.jpg") == ["a/x.jpg", "b/x.jpg"]
    assert keys(tree / "**" / "*.webp") == ["b/deep/z.webp"]
    assert keys(tree / "a" / "x.jpg", tree / "a" / "*.jpg") == ["x.jpg"]


def test_links_are_followed_but_not_in_circles(tree):
    os.symlink(tree, tree / "b" / "deep" / "loop")
    os.symlink(tree / "a", tree / "again")
    assert keys(tree) == ["a/x.jpg", "a/y.PNG", "again/x.jpg", "again/y.PNG", "b/deep/z.webp", "b/x.jpg"]


def test_a_link_to_itself_is_no_folder(tree):
    for name in ("loop", "loop.jpg"):
        os.symlink(name, tree / "a" / name)
    listing = list_images([str(tree / "a")])
    assert [(image.key, image.with_status().size) for image in listing.images] == [
        ("loop.jpg", -1),
        ("x.jpg", 7),
        ("y.PNG", 7),
    ]


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if path.endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"cannot list .*/b/deep: Permission denied"):
        keys(tree)


def test_it_is_known_when_images_were_written(tree):
    os.utime(tree / "a" / "x.jpg", ns=(5, 5))
    make_tar(tree / "shard.tar", {"a.jpg": b"1"})
    os.utime(tree / "shard.tar", ns=(7, 7))
    (tree / "list.txt").write_text("a/x.jpg\nmissing.jpg\n")
    sources = (tree / "a" / "x.jpg", tree / "shard.tar", tree / "list.txt")
    assert [[image.with_status().modified for image in list_images([str(source)]).images] for source in sources] == [
        [5],
        [7],
        [5, None],
    ]


def test_a_text_list(tree):
    (tree / "list.txt").write_text("b/x.jpg\n\na/x.jpg\nmissing.jpg\n", encoding="utf-8-sig")
    listing = list_images([str(tree / "list.txt")])
    assert [(image.key, image.with_status().size) for image in listing.images] == [
        ("b/x.jpg", 7),
        ("a/x.jpg", 7),
        ("missing.jpg", -1),
    ]


def test_tables(tree):
    (tree / "list.csv").write_text("label,image_path\n1,a/x.jpg\n2,b/x.jpg\n")
    (tree / "list.tsv").write_text("path\tlabel\nb/x.jpg\t1\n")
    table = pyarrow.table({"filename": ["a/y.PNG", "a/x.jpg"], "label": [1, 2]})
    parquet.write_table(table, tree / "list.parquet")
    assert keys(tree / "list.csv") == ["a/x.jpg", "b/x.jpg"]
    assert keys(tree / "list.tsv") == ["b/x.jpg"]
    assert keys(tree / "list.parquet") == ["a/y.PNG", "a/x.jpg"]


def test_a_list_with_paths_elsewhere(tree, tmp_path):
    other = tmp_path / "other" / "q.jpg"
    other.parent.mkdir()
    other.touch()
    (tree / "list.txt").write_text(f"a/x.jpg\n{other}\n../other/q.jpg\n")
    assert keys(tree / "list.txt") == ["tree/a/x.jpg", "other/q.jpg"]


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def test_tar_shards_are_read_in_place(tmp_path):
    make_tar(tmp_path / "shard-0.tar", {"000.jpg": b"first", "000.json": b"{}", "001.png": b"second"})
    make_tar(tmp_path / "shard-1.tar", {"000.jpg": b"third"})
    images = list_images([str(tmp_path / "shard-*.tar")]).images
    assert [image.key for image in images] == ["shard-0/000.jpg", "shard-0/001.png", "shard-1/000.jpg"]
    assert [image.open() for image in images] == [b"first", b"second", b"third"]


def test_links_in_a_tar_are_what_they_stand_for(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, kind, target in (
            ("./d/one.jpg", tarfile.REGTYPE, ""),
            ("d/hard.jpg", tarfile.LNKTYPE, "d/one.jpg"),
            ("d/soft.jpg", tarfile.SYMTYPE, "one.jpg"),
            ("d/lost.jpg", tarfile.SYMTYPE, "nowhere.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, content = kind, target, b"one" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    images = list_images([str(tmp_path / "a.tar")]).images
    assert [image.key for image in images] == [f"a/d/{name}.jpg" for name in ("one", "hard", "soft", "lost")]
    assert [image.open() for image in images] == [b"one", b"one", b"one", b""]


def test_names_cannot_leave_the_output_folder(tmp_path):
    make_tar(tmp_path / "evil.tar", {"../../up.jpg": b"1", "/etc/abs.jpg": b"2", "a/../../b.jpg": b"3"})
    assert keys(tmp_path / "evil.tar") == ["evil/up.jpg", "evil/etc/abs.jpg", "evil/a/b.jpg"]


def test_undecodable_names_become_printable(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    assert keys(tmp_path) == ["caf\\xe9.jpg"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tree: tree / "nowhere", "no file or folder"),
        (lambda tree: tree / "*.gif", "nothing matches"),
        (lambda tree: tree / "empty", "no images in"),
        (lambda tree: tree / "columns.csv", "has the columns id, label; name the one with the paths 'path'"),
        (lambda tree: tree / "empty.txt", "names no images"),
        (lambda tree: tree / "latin.txt", r"latin\.txt is not UTF-8 .* at byte 3\); save it as UTF-8"),
        (lambda tree: tree / "latin.csv", r"latin\.csv is not UTF-8"),
        (lambda tree: tree / "nulls.csv", r"nulls\.csv (is not a table|has the columns)"),
        (lambda tree: tree / "pixels.parquet", r"has struct<bytes: binary> in column 'image', not paths"),
        (lambda tree: tree / "text.parquet", r"text\.parquet is not a parquet file, or is damaged"),
        (lambda tree: tree / "packed.tar", "not an uncompressed tar file"),
        (lambda tree: tree / "twins.tar", "both named"),
    ],
)
def test_errors(tree, make, message):
    (tree / "empty").mkdir()
    (tree / "columns.csv").write_text("id,label\n1,2\n")
    (tree / "empty.txt").write_text("\n")
    (tree / "latin.txt").write_bytes(b"caf\xe9.jpg\n")
    (tree / "latin.csv").write_bytes(b"path\ncaf\xe9.jpg\n")
    (tree / "nulls.csv").write_bytes(b"\0\n\0")
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"1"}]}), tree / "pixels.parquet")
    (tree / "text.parquet").write_text("path\na.jpg\n")
    make_tar(tree / "packed.tar", {"a.jpg": b"1"}, "w:gz")
    make_tar(tree / "twins.tar", {"a.jpg": b"1", "./../a.jpg": b"2"})
    with pytest.raises(SourceError, match=message):
        list_images([str(make(tree))])
