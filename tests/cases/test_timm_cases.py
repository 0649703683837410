"""Inputs that have failed before: models of timm that keep their norm in an unusual place, or have an odd size."""

import json

import numpy as np
import pytest
import torch
from case_helpers import sail, says_one_line
from helpers import noise, save_images

from sail_encoder import load_backbone

AFTER_POOLING = (
    *("eva02_tiny_patch14_224", "vitamin_small_224", "convnext_atto", "convnextv2_atto", "hiera_tiny_224"),
    *("davit_tiny", "caformer_s18", "tiny_vit_5m_224", "vit_medium_patch16_rope_reg1_gap_256"),
)


def features_of(name, image, **options):
    return load_backbone(f"timm/{name}", device="cpu", dtype="float32", pretrained=False).encode([image], **options)[0]


@pytest.mark.parametrize("name", [*AFTER_POOLING, "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_b9_norms_after_the_pooling_are_applied(name):
    image = noise(90, 120)
    raw, normed = (features_of(name, image, norm=norm).grid.flatten(0, 1) for norm in (False, True))
    # With starting weights each of these norms brings a patch to mean 0 and deviation 1, but for its epsilon.
    expected = torch.nn.functional.layer_norm(raw, raw.shape[-1:], eps=1e-6)
    torch.testing.assert_close(normed, expected, rtol=1e-2, atol=1e-2)
    assert (normed - raw).abs().max() > 0.1


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_tiny_patch16_224"])
def test_b9_a_norm_outlives_the_blocks_that_are_left_out(name):
    image = noise(90, 120)
    part = load_backbone(f"timm/{name}", device="cpu", dtype="float32", layers=3, pretrained=False)
    whole = features_of(name, image, layers=[2]).grid
    torch.testing.assert_close(part.encode([image])[0].grid, whole)
    assert part.fingerprint(2) != part.fingerprint(1)


def recorded_norm(tmp_path, name, *options):
    out = tmp_path / f"{name}{len(options)}"
    asked = ["--model", f"timm/{name}", "--random-weights", "--devices", "cpu", *options]
    done = sail("extract", tmp_path / "photos", "--out", out, *asked)
    assert done.returncode == 0, done.stderr
    written = json.loads((out / "run.json").read_text())
    return written, done.stderr, np.load(out / "features" / "000.png.npy")


def find_norm(written):
    """The setting, wherever run.json has it."""
    if isinstance(written, dict):
        found = [find_norm(value) for key, value in written.items() if key != "norm"]
        return next((value for value in [written.get("norm"), *found] if value is not None), None)
    return None


@pytest.mark.parametrize(("name", "options"), [("resnet18", ()), ("convnext_atto", ("--layers", "1"))])
def test_b9_a_norm_that_is_not_applied_is_not_recorded(tmp_path, name, options):
    save_images(tmp_path / "photos", 1)
    written, said, features = recorded_norm(tmp_path, name, *options)
    assert find_norm(written) is False
    assert f"timm/{name} has no final norm" in said
    _, _, plain = recorded_norm(tmp_path, name, *options, "--norm", "false")
    np.testing.assert_array_equal(features, plain)


def test_b9_a_norm_that_is_applied_is_recorded(tmp_path):
    save_images(tmp_path / "photos", 1)
    assert find_norm(recorded_norm(tmp_path, "convnext_atto")[0]) is True


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("tf_efficientnet_b2", -1, (256, 256)),
        ("tf_efficientnet_b3", -1, (288, 288)),
        ("efficientvim_m1", -1, (192, 192)),
        ("crossvit_9_240", -1, (238, 238)),
        ("crossvit_9_240", 0, (240, 240)),
        ("xception41", 2, (288, 288)),
    ],
)
def test_e9_auto_takes_a_size_that_works(name, layer, size):
    features = features_of(name, noise(90, 120), layers=[layer])
    assert features.resized_size == size
    assert features.grid.isfinite().all()
    assert (features.grid.shape[0] * features.patch_size, features.grid.shape[1] * features.patch_size) == size


@pytest.mark.parametrize("name", ["inception_v3", "inception_v4", "levit_128", "levit_conv_128s"])
def test_e9_a_model_without_a_grid_is_refused_before_it_is_loaded(name, tmp_path):
    save_images(tmp_path / "photos", 1)
    asked = ["--model", f"timm/{name}", "--random-weights"]
    done = sail("extract", tmp_path / "photos", "--out", tmp_path / "out", *asked, "--dry_run", "true")
    assert says_one_line(done, f"timm/{name} was trained at")
    assert "take another model" in done.stderr
    assert says_one_line(sail("info", "--model", f"timm/{name}"), "do not tile")
    with pytest.raises(ValueError, match="take another model"):
        load_backbone(f"timm/{name}", device="cpu", pretrained=False)
