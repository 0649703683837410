"""`SailBackbone`, and the dense heads of transformers on top of it."""

import pytest
import torch
from helpers import small_config
from transformers import (
    AutoBackbone,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from sail_encoder import load_backbone
from sail_encoder.io.errors import UserError
from sail_encoder.models.sail.modeling_sail_backbone import SailBackbone

ROWS, COLUMNS = 4, 6


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 14 * ROWS, 14 * COLUMNS, generator=torch.Generator().manual_seed(0))


def test_maps_are_those_of_the_vision_backbone(small_checkpoint, pixels):
    backbone = SailBackbone.from_pretrained(small_checkpoint, out_indices=[1, 3])
    expected = load_backbone(str(small_checkpoint)).forward_intermediates(
        pixels, [0, 2], norm=True, intermediates_only=True
    )
    maps = backbone(pixels).feature_maps
    assert [tuple(m.shape) for m in maps] == [(2, 64, ROWS, COLUMNS)] * 2
    for given, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(given, wanted)
    assert backbone.channels == [64, 64]


def test_it_is_known_to_autobackbone(pixels):
    backbone = AutoBackbone.from_config(small_config(out_features=["stem", "stage3"]))
    assert isinstance(backbone, SailBackbone)
    assert backbone.out_indices == [0, 3]
    assert len(backbone(pixels).feature_maps) == 2


def test_without_norm_and_as_sequences(small_checkpoint, pixels):
    options = {"out_features": ["stage2"], "apply_layernorm": False}
    maps = SailBackbone.from_pretrained(small_checkpoint, **options)(pixels).feature_maps[0]
    sequences = SailBackbone.from_pretrained(small_checkpoint, **options, reshape_hidden_states=False)(pixels)
    tokens = sequences.feature_maps[0]
    assert tokens.shape == (2, 1 + ROWS * COLUMNS, 64)
    torch.testing.assert_close(tokens[:, 1:].unflatten(1, (ROWS, COLUMNS)).permute(0, 3, 1, 2), maps)
    raw = load_backbone(str(small_checkpoint)).forward_intermediates(pixels, [1], intermediates_only=True)[0]
    torch.testing.assert_close(maps, raw)


def test_no_block_beyond_the_deepest_stage_runs(small_checkpoint, pixels):
    backbone = SailBackbone.from_pretrained(small_checkpoint, out_indices=[0, 1])
    ran = []
    for index, layer in enumerate(backbone.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    backbone(pixels)
    assert ran == [0]
    everything = backbone(pixels, output_hidden_states=True)
    assert len(everything.hidden_states) == len(backbone.stage_names) == 4
    assert ran == [0, 0, 1, 2]


def test_sizes_that_patches_do_not_tile_are_refused(small_checkpoint):
    backbone = SailBackbone.from_pretrained(small_checkpoint)
    with pytest.raises(UserError, match=r"\(1, 3, 30, 28\) cannot be cut into patches; pass \[n, 3, 14\*a, 14\*b\]"):
        backbone(torch.zeros(1, 3, 30, 28))


def test_upernet_trains_its_head_alone_on_a_frozen_backbone(pixels):
    config = UperNetConfig(
        backbone_config=small_config(out_indices=[0, 1, 2, 3]), hidden_size=16, auxiliary_channels=8, num_labels=5
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone.requires_grad_(False)
    output = model(pixels, labels=torch.randint(0, 5, (2, 14 * ROWS, 14 * COLUMNS)))
    assert output.logits.shape == (2, 5, 14 * ROWS, 14 * COLUMNS)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert float(model.decode_head.classifier.weight.grad.abs().sum()) > 0


def test_upernet_fine_tunes_the_backbone_where_it_is_not_frozen(pixels):
    config = UperNetConfig(
        backbone_config=small_config(out_indices=[1, 3]), hidden_size=16, use_auxiliary_head=False, num_labels=5
    )
    model = UperNetForSemanticSegmentation(config)
    model(pixels, labels=torch.randint(0, 5, (2, 14 * ROWS, 14 * COLUMNS))).loss.backward()
    assert float(model.backbone.model.vis_embed.weight.grad.abs().sum()) > 0


def test_dpt_takes_sail_with_a_grid_that_is_not_square(pixels):
    config = DPTConfig(
        backbone_config=small_config(out_indices=[0, 1, 2, 3], reshape_hidden_states=False),
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    model = DPTForDepthEstimation(config)
    depth = model(pixels).predicted_depth
    assert depth.shape == (2, 16 * ROWS, 16 * COLUMNS)
    depth.sum().backward()
    assert float(model.neck.reassemble_stage.readout_projects[0][0].weight.grad.abs().sum()) > 0


def test_mask2former_takes_sail(pixels):
    config = Mask2FormerConfig(
        backbone_config=small_config(out_indices=[0, 1, 2, 3]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        num_labels=5,
        train_num_points=32,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    masks = [torch.randint(0, 2, (2, 14 * ROWS, 14 * COLUMNS)).float()] * 2
    output = model(pixels, mask_labels=masks, class_labels=[torch.tensor([0, 1])] * 2)
    output.loss.backward()
    assert output.masks_queries_logits.shape == (2, 4, ROWS, COLUMNS)
    assert float(model.class_predictor.weight.grad.abs().sum()) > 0
