"""Inputs that have failed before: sizes that images are brought to."""

import numpy as np
import pytest
from case_helpers import sail, statuses
from helpers import noise
from PIL import Image
from pyarrow import parquet

from sail_encoder import load_backbone


def grid_of(size, resize, patch_size):
    image = np.zeros((*size, 3), np.uint8)
    [features] = load_backbone(f"raw/{patch_size}", device="cpu").encode([image], resize=resize)
    return features.resized_size


@pytest.mark.parametrize(
    ("size", "resize", "patch_size", "expected"),
    [
        ((512, 683), "short512", 16, (512, 688)),
        ((683, 512), "short512", 16, (688, 512)),
        ((480, 640), "short512", 16, (512, 688)),
        ((1024, 1025), "short512", 16, (512, 528)),
        ((375, 500), "short224", 14, (224, 308)),
        ((333, 500), "short504", 14, (504, 770)),
        ((7, 9), "short224", 14, (224, 294)),
        ((512, 512), "short512", 16, (512, 512)),
        # Where 512 is not whole patches, both sides go up to the next.
        ((512, 683), "short512", 14, (518, 686)),
    ],
)
def test_b8_the_shorter_side_is_what_was_asked_for(size, resize, patch_size, expected):
    assert grid_of(size, resize, patch_size) == expected


def test_b8_the_shorter_side_is_exact_for_any_image():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 900, (40, 2)).tolist():
        if max(height, width) < 3 * min(height, width):
            assert min(grid_of((height, width), "short224", 16)) == 224


def test_b8_extract_does_the_same(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(noise(96, 128, number + ord(label)))
            image.save(tmp_path / "photos" / label / f"{number}.png")
    fixed = ["--resize", "short64", "--model", "raw/16"]
    done = sail("extract", tmp_path / "photos", "--out", tmp_path / "out", *fixed, "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    assert set(statuses(tmp_path / "out").values()) == {"done"}
    rows = parquet.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    sizes = {(row["resized_height"], row["resized_width"]) for row in rows}
    assert sizes == {(64, 96)}, "85.3 goes up to whole patches, 64 stays"
