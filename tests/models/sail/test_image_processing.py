import numpy as np
import pytest
import torch
from helpers import noise
from PIL import Image

from sail_encoder import SailImageProcessor


def test_mixed_sizes_in_one_call():
    processor = SailImageProcessor()
    images = [Image.fromarray(noise(40, 60)), noise(28, 14), torch.from_numpy(noise(14, 14)).permute(2, 0, 1)]
    out = processor(images, return_tensors="pt")
    assert out["image_grid_hw"].tolist() == [[4, 5], [2, 1], [1, 1]]
    assert out["pixel_values"].shape == (23, 588)
    assert out["pixel_values"].dtype == torch.float32


def test_options_reach_the_result(tmp_path):
    processor = SailImageProcessor(max_tokens=6, patch_size=16)
    image = noise(64, 96)
    assert processor(image)["image_grid_hw"].tolist() == [[2, 3]]
    assert processor(image, size={"height": 32, "width": 64})["image_grid_hw"].tolist() == [[2, 4]]
    raw = processor(image, do_normalize=False, do_rescale=False)["pixel_values"]
    assert raw.max() > 100
    processor.save_pretrained(tmp_path)
    assert SailImageProcessor.from_pretrained(tmp_path).max_tokens == 6


def test_number_of_patches():
    processor = SailImageProcessor()
    assert processor.get_number_of_image_patches(480, 640) == 35 * 46
    assert processor.get_number_of_image_patches(480, 640, {"max_tokens": 100}) <= 100


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_of_a_pil_image(mode):
    out = SailImageProcessor()(Image.fromarray(noise(28, 28)).convert(mode))
    assert out["pixel_values"].shape == (4, 588)
    assert np.isfinite(out["pixel_values"]).all()
