import shutil

import numpy as np
import pytest
from helpers import save_images
from pyarrow import parquet
from torch.utils.data import DataLoader

from sail_encoder import FeatureDataset
from sail_encoder.commands.extract import extract
from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.store.reading import Entries, FeatureFolder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = save_images(tmp_path_factory.mktemp("photos"), 5)
    (folder / "broken.png").write_bytes(b"broken")
    return folder


@pytest.mark.parametrize("layers", ["-1", "0,-1"])
def test_grids_and_pooled_vectors_agree(photos, tmp_path, small_checkpoint, small_backbone, layers):
    for pool in ("none", "mean"):
        options = {"layers": layers, "store_dtype": "float32", "model": str(small_checkpoint), "pool": pool}
        extract([str(photos)], str(tmp_path / pool), **options)
    grids, pooled = FeatureFolder(tmp_path / "none"), FeatureFolder(tmp_path / "mean")
    assert [entry.path for entry in grids.entries] == [f"{index:03d}.png" for index in range(5)]
    for layer in grids.layers:
        np.testing.assert_allclose(grids.matrix(layer), pooled.matrix(layer), rtol=1e-4, atol=1e-5)
    highest = [grids.read(entry).max((0, 1)) for entry in grids.entries]
    np.testing.assert_array_equal(grids.matrix(pool="max"), highest)
    assert isinstance(pooled.matrix(), np.memmap)
    with pytest.raises(UserError, match=r"rows are of grids, but .* has one vector per image; leave rows out"):
        pooled.read("000.png", rows=slice(0, 1))
    for entry in grids.entries:
        features = small_backbone.encode([photos / entry.path], layers=layers)[0]
        assert entry.grid == features.grid_size
        assert entry.image_size == features.image_size
        for layer, grid in features.layers.items():
            np.testing.assert_allclose(grids.read(entry, layer), grid.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(StoreError, match="has no layer 1"):
        grids.matrix(layer=1)


@pytest.fixture(scope="module")
def grids(photos, tmp_path_factory, small_checkpoint):
    out = tmp_path_factory.mktemp("grids")
    assert extract([str(photos)], str(out), str(small_checkpoint), layers="0,-1") == 1
    return FeatureFolder(out)


def test_blocks_of_a_matrix_are_its_rows(photos, grids, tmp_path, small_checkpoint):
    extract([str(photos)], str(tmp_path), str(small_checkpoint), pool="mean", layers="0,-1")
    for folder in (grids, FeatureFolder(tmp_path)):
        whole = folder.matrix(0, dtype="float64")
        assert whole.dtype == np.float64
        np.testing.assert_array_equal(whole, folder.matrix(0).astype("float64"))
        blocks = [folder.matrix(0, rows=slice(start, start + 2)) for start in range(0, len(folder), 2)]
        np.testing.assert_array_equal(np.concatenate(blocks), folder.matrix(0))
        assert folder.matrix(rows=slice(9, None)).shape == (0, whole.shape[1])
        for some in (slice(None, None, -1), slice(3, 0, -2), slice(-2, None), slice(0, 5, 2)):
            np.testing.assert_array_equal(folder.matrix(0, rows=some), folder.matrix(0)[some])


@pytest.mark.parametrize("layers", ["-1", "0,-1"])
def test_a_matrix_has_the_rows_of_the_index_wherever_they_are(photos, tmp_path, small_checkpoint, layers):
    extract([str(photos)], str(tmp_path), str(small_checkpoint), pool="mean", layers=layers)
    before = FeatureFolder(tmp_path).matrix(0 if "," in layers else None).copy()
    table = parquet.read_table(tmp_path / "index.parquet")
    for order in ([4, 0, 3, 1, 2], [0, 1, 2, 3], [3, 1]):
        parquet.write_table(table.take(order), tmp_path / "index.parquet")
        folder = FeatureFolder(tmp_path)
        np.testing.assert_array_equal(folder.matrix(0 if "," in layers else None), before[order])
        np.testing.assert_array_equal(folder.read(folder.entries[-1]), folder.matrix()[-1])


@pytest.mark.parametrize("layers", ["-1", "0,-1"])
def test_a_matrix_of_a_type_is_the_callers_own(photos, tmp_path, small_checkpoint, layers):
    extract([str(photos)], str(tmp_path), str(small_checkpoint), pool="mean", layers=layers, store_dtype="float32")
    folder = FeatureFolder(tmp_path)
    vectors = folder.matrix(dtype="float32", rows=slice(1, 4))
    assert vectors.flags.c_contiguous
    vectors *= 0
    assert folder.matrix().any(1).all()


def test_rows_of_a_grid_lie_beside_each_other(grids):
    path = grids.entries[0].path
    np.testing.assert_array_equal(grids.read(path, rows=slice(-2, None)), grids[path][-2:])
    for step in (2, -1):
        with pytest.raises(UserError, match=f"rows cannot have a step of {step}; read all"):
            grids.read(path, rows=slice(None, None, step))


def test_files_of_another_shape_are_damaged(photos, grids, tmp_path, small_checkpoint):
    folder = shutil.copytree(grids.folder, tmp_path / "grids")
    entry = grids.entries[0]
    np.save(folder / entry.file, np.load(folder / entry.file)[:1])
    with pytest.raises(StoreError, match="is damaged: its shape is"):
        FeatureFolder(folder).read(entry, 0)
    extract([str(photos)], str(tmp_path / "pooled"), str(small_checkpoint), pool="mean")
    file = tmp_path / "pooled" / FeatureFolder(tmp_path / "pooled").entries[4].file
    np.save(file, np.load(file)[:4])
    pooled = FeatureFolder(tmp_path / "pooled")
    for read in (lambda: pooled.read(pooled.entries[4]), pooled.matrix):
        with pytest.raises(StoreError, match="has 4 rows, not row 4; the same sail extract writes it again"):
            read()


def test_a_matrix_of_no_images(tmp_path, small_checkpoint):
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert extract([str(tmp_path / "broken.png")], str(tmp_path / "out"), str(small_checkpoint)) == 1
    matrix = FeatureFolder(tmp_path / "out").matrix(dtype="float16")
    assert (matrix.shape, matrix.dtype) == ((0, 0), np.float16)


def test_blocks_do_not_look_through_the_index_again(photos, tmp_path, small_checkpoint, monkeypatch):
    extract([str(photos)], str(tmp_path), str(small_checkpoint), pool="mean")
    folder, files, looks = FeatureFolder(tmp_path), Entries.files.fget, []
    monkeypatch.setattr(Entries, "files", property(lambda entries: looks.append(1) or files(entries)))
    for start in range(len(folder)):
        folder.matrix(rows=slice(start, start + 1))
    assert len(looks) == 1


def test_a_dataset_for_a_loader(grids):
    names = [entry.path for entry in grids.entries]
    dataset = FeatureDataset(grids, {names[3]: 1, names[0]: 0})
    batches = list(DataLoader(dataset, batch_size=1, num_workers=1))
    assert [int(target) for _, target in batches] == [1, 0]
    np.testing.assert_array_equal(batches[0][0][0].numpy(), grids[names[3]].astype("float32"))
    everything = FeatureDataset(grids.folder, layer=0)
    assert [everything[index][1] for index in range(len(everything))] == names
    np.testing.assert_array_equal(everything[4][0].numpy(), grids.read(names[4], 0).astype("float32"))
    assert len(FeatureDataset(grids, {})) == 0
    with pytest.raises(StoreError, match=r"no features of 'broken\.png'"):
        FeatureDataset(grids, {names[0]: 0, "broken.png": 1})


def test_a_folder_without_a_finished_run(tmp_path):
    with pytest.raises(StoreError, match="sail extract"):
        FeatureFolder(tmp_path)
