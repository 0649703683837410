"""Feature folders that version 0.1.0 has written are read, and its runs are not continued."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from sail_cli import main
from sail_encoder import FeatureFolder

RECORDED = Path(__file__).parents[1] / "golden/features_of_0_1_0"
WEIGHTS = "888bb0fb6a9a60a7"


def test_grids():
    folder = FeatureFolder(RECORDED / "grids")
    spec = folder.spec
    assert [entry.path for entry in folder.entries] == ["a.png", "b/c.png"]
    assert (spec.model, spec.layers, spec.norm, spec.pool) == ("sail-tiny", (1, 5), True, "none")
    assert (spec.store_dtype, spec.precision, spec.size.max_tokens, spec.weights) == (
        "float16",
        "float32",
        256,
        WEIGHTS,
    )
    for entry, shape in zip(folder.entries, ((2, 3), (3, 2)), strict=True):
        stored = np.load(RECORDED / "grids" / entry.file)
        assert entry.grid == shape
        assert stored.shape == (2, *shape, 256)
        np.testing.assert_array_equal(folder[entry.path], stored[-1])


def test_vectors():
    folder = FeatureFolder(RECORDED / "pooled")
    assert (folder.is_pooled, folder.spec.pool, len(folder)) == (True, "mean", 2)
    np.testing.assert_array_equal(folder.matrix(), np.load(RECORDED / "pooled/features_00000.npy"))


@pytest.mark.parametrize("is_finished", [True, False])
def test_runs_are_not_continued(is_finished, tmp_path, capsys):
    shutil.copytree(RECORDED / "grids", tmp_path / "grids")
    if not is_finished:
        (tmp_path / "grids/index.parquet").unlink()
    Image.fromarray(noise(28, 42)).save(tmp_path / "a.png")
    before = {path: path.read_bytes() for path in (tmp_path / "grids").rglob("*") if path.is_file()}
    assert main(["extract", str(tmp_path / "a.png"), "--out", str(tmp_path / "grids")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds a run of version 0.1.0, which is read but not continued; use another --out" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "grids").rglob("*") if path.is_file()}
