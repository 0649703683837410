"""Features of crops: those that the backbone gives for the same pictures."""

import pytest
import torch

from evals.crops import CropEncoder, CroppedImages
from evals.datasets.loading import load_dataset
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.decoding import read_image


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("fuse", "pool"), [("concat", "mean"), ("mean", "max"), ("mean", "gem")])
def test_features_of_crops_are_those_of_encode(pets, small_backbone, norm, fuse, pool, monkeypatch):
    monkeypatch.setattr(small_backbone, "default_token_budget", lambda: 9, raising=False)
    dataset, layers = load_dataset(str(pets)), [0, 2]
    images = CroppedImages(dataset, 28, None)
    encode = CropEncoder(small_backbone, FeatureSpec("small", tuple(layers), norm, pool, fuse), 28)
    patches = torch.stack([images[row, 0][0] for row in range(5)])
    crops = [images.transform(read_image(images.images[key].open())[0]) for key in dataset.keys[:5]]

    def fused(states):
        return torch.cat(states, -1) if fuse == "concat" else torch.stack(states).mean(0)

    features = small_backbone.encode(crops, layers=layers, norm=norm, resize="28")
    grids = [fused([one.layers[layer] for layer in layers]) for one in features]
    pooled = torch.stack([fused([one.pool(pool, layer) for layer in layers]) for one in features])
    with torch.no_grad():
        packed, counts = encode(patches, "grids")
        vectors = encode(patches, "vectors")
    assert counts.tolist() == [4] * 5
    assert (encode.dim("grids"), encode.dim("vectors")) == (packed.shape[1], vectors.shape[1])
    torch.testing.assert_close(packed, torch.cat([grid.flatten(0, 1) for grid in grids]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors, pooled, rtol=1e-4, atol=1e-5)
