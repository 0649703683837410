"""Pooled features go to a folder elsewhere; what others have there stays."""

import fsspec
import numpy as np
import pytest
from helpers import noise
from PIL import Image

from sail_cli import main
from sail_encoder import FeatureFolder
from sail_encoder.store import remote
from sail_encoder.store.remote import RemoteFolder

OUT = "memory://features/run"


@pytest.fixture
def files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/features", recursive=True)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(noise(28, 42, number)).save(folder / f"{number}.png")
    return folder


def extract(photos, *more):
    return main(["extract", str(photos), "--out", OUT, "--model", "raw/14", "--pool", "mean", *more])


def names(files):
    return sorted(name.rsplit("/", 1)[1] for name in files.ls("/features/run", detail=False))


def fetched(files, folder):
    files.get("/features/run", str(folder), recursive=True)
    return FeatureFolder(folder)


def test_shards_index_and_run_are_there(files, photos, tmp_path, capsys):
    assert extract(photos) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"copied to {OUT}"
    assert names(files) == ["features_00000.npy", "index.parquet", "run.json"]
    assert main(["extract", str(photos), "--out", str(tmp_path / "here"), "--model", "raw/14", "--pool", "mean"]) == 0
    there = fetched(files, tmp_path / "there")
    np.testing.assert_array_equal(there.matrix(), FeatureFolder(tmp_path / "here").matrix())


@pytest.fixture
def copies(files, monkeypatch):
    """Names of the files that are copied."""
    put, copies = type(files).put_file, []
    monkeypatch.setattr(
        type(files), "put_file", lambda self, *a, **k: copies.append(a[1].rsplit("/", 1)[1]) or put(self, *a, **k)
    )
    return copies


def test_only_what_is_new_is_copied(files, photos, tmp_path, copies):
    extract(photos)
    assert copies == ["features_00000.npy", "index.parquet", "run.json"]
    copies.clear()
    assert extract(photos) == 0
    assert "features_00000.npy" not in copies
    copies.clear()
    Image.fromarray(noise(28, 28)).save(photos / "new.png")
    assert extract(photos) == 0
    assert copies[-1] == "run.json"
    assert len(fetched(files, tmp_path / "there")) == 4


def test_what_was_deleted_there_is_copied_again(files, photos, tmp_path):
    extract(photos)
    files.rm("/features/run/features_00000.npy")
    assert extract(photos) == 0
    assert len(fetched(files, tmp_path / "there").matrix()) == 3


def test_vectors_are_not_replaced_below_an_earlier_index(files, photos, copies, monkeypatch):
    extract(photos)
    put = type(files).put_file
    there = []
    monkeypatch.setattr(type(files), "put_file", lambda self, *a, **k: there.append(names(self)) or put(self, *a, **k))
    assert extract(photos, "--pool", "max", "--overwrite") == 0
    assert there[0] == ["features_00000.npy"]
    assert names(files) == ["features_00000.npy", "index.parquet", "run.json"]


def test_a_copy_that_was_cut_short_goes_on(files, photos, tmp_path, monkeypatch, capsys):
    put = type(files).put_file

    def fail(self, source, target, **options):
        put(self, source, target, **options)
        raise ConnectionError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "put_file", fail)
        assert extract(photos) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {OUT} (ConnectionError: the line is dead); the features are safe in" in error
    assert extract(photos) == 0
    assert len(fetched(files, tmp_path / "there")) == 3


def test_files_of_others_stay(files, photos, capsys):
    files.pipe_file("/features/run/index.parquet", b"theirs")
    assert extract(photos, "--overwrite") == 2
    assert f"{OUT} has index.parquet, which no run on this machine has copied there" in capsys.readouterr().err
    assert files.cat_file("/features/run/index.parquet") == b"theirs"


def test_a_run_is_overwritten(files, photos, tmp_path):
    extract(photos)
    assert extract(photos, "--pool", "max") == 2
    assert extract(photos, "--pool", "max", "--overwrite") == 0
    assert fetched(files, tmp_path / "there").spec.pool == "max"


def test_a_dry_run_and_a_stopped_one_copy_nothing(files, photos):
    files.makedirs("/features/run")
    assert extract(photos, "--dry-run") == 0
    assert names(files) == []

    def stop(folder):
        """As a run that a signal ends after one that was finished."""
        main(["extract", str(photos), "--out", str(folder), "--model", "raw/14", "--pool", "mean"])
        return 130

    assert RemoteFolder(OUT).run(stop) == 130
    assert (RemoteFolder(OUT).local / "run.json").exists()
    assert names(files) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pool", "none"], f"{OUT} takes pooled vectors alone"),
        (["--pool", "mean", "--shard", "0/2"], f"--shard 0/2 cannot write to {OUT}"),
        (["--pool", "mean", "--shard", "two"], "shard 'two' is not understood"),
    ],
)
def test_what_cannot_go_elsewhere(options, message, photos, capsys):
    assert main(["extract", str(photos), "--out", OUT, "--model", "raw/14", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_note_is_named(files, photos, capsys):
    extract(photos)
    (RemoteFolder(OUT).local / remote._COPIED).write_text("[1")
    assert extract(photos) == 2
    assert "copied.json is damaged" in capsys.readouterr().err
