"""Inputs that have failed before: SAIL as the backbone of transformers' dense heads."""

from pathlib import Path

import pytest
import torch

import sail_encoder

TINY = Path(sail_encoder.__file__).parent / "tiny"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_e11_upernet_on_a_checkpoint(dtype, tmp_path):
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    sail_encoder.SailForCausalLM.from_pretrained(TINY, dtype=dtype).save_pretrained(tmp_path)
    backbone = sail_encoder.SailBackbone.from_pretrained(tmp_path, out_indices=[1, 2, 3, 4])
    assert backbone.dtype == dtype
    config = UperNetConfig(
        backbone_config=backbone.config, hidden_size=16, num_labels=3, use_auxiliary_head=False, pool_scales=[1]
    )
    model = UperNetForSemanticSegmentation(config).eval()
    model.backbone = backbone.requires_grad_(False)
    p = backbone.config.vision_patch_size
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 4 * p, 6 * p)).logits
    assert logits.shape == (2, 3, 4 * p, 6 * p)
    assert logits.isfinite().all()


def test_e11_a_folder_gives_the_features_of_encode():
    backbone = sail_encoder.SailBackbone.from_pretrained(TINY, out_indices=[3], dtype=torch.float32).eval()
    own = sail_encoder.load_backbone(str(TINY), device="cpu", dtype="float32")
    p = backbone.config.vision_patch_size
    pixels = torch.randn(1, 3, 3 * p, 5 * p)
    with torch.no_grad():
        [found] = backbone(pixels).feature_maps
    [expected] = own.get_intermediate_layers(pixels, [2], reshape=True, norm=backbone.config.apply_layernorm)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
