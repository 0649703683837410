import numpy as np
import pytest
from helpers import save_images

from sail_encoder.commands.extract import extract
from sail_encoder.io.errors import StoreError
from sail_encoder.store.reading import FeatureFolder


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
    np.testing.assert_allclose(grids.matrix(), pooled.matrix(), rtol=1e-4, atol=1e-5)
    assert isinstance(pooled.matrix(), np.memmap)
    for entry in grids.entries:
        features = small_backbone.encode([photos / entry.path], layers=layers)[0]
        assert entry.grid == features.grid_size
        assert entry.image_size == features.image_size
        for layer, grid in features.layers.items():
            np.testing.assert_allclose(grids.read(entry, layer), grid.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(StoreError, match="has no layer 1"):
        grids.matrix(layer=1)


def test_a_folder_without_a_finished_run(tmp_path):
    with pytest.raises(StoreError, match="sail extract"):
        FeatureFolder(tmp_path)
