"""Pixel-SAIL against what the published code gave."""

import json

import numpy as np
import pytest
import torch
from pixel_sail_golden import (
    CASES,
    CHECKPOINT,
    FACTS,
    GOLDEN,
    GRID,
    NO_MASKS,
    WITH_MASKS,
    answer_from,
    inputs,
    prompt_masks,
    question,
    tensors,
)
from safetensors.torch import load_file
from torch.testing import assert_close

from sail_encoder.chat.pixel_sail import resize_masks
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.pixel_sail.losses import mask_losses, sample_points, uncertain_points
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM, mark_patches
from sail_encoder.models.pixel_sail.regions import covered_patches
from sail_encoder.models.sail.packed_images import PackedImages


def close(actual, expected):
    assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_inputs(processor, case):
    recorded, ours = tensors(case), inputs(processor, case)
    ids = torch.cat((recorded["prefix_ids"], recorded["text_ids"]), dim=1)
    assert torch.equal(ours["input_ids"], ids)
    assert torch.equal(ours["image_grid_hw"], GRID)
    close(ours["pixel_values"], tensors(0)["vision_patches"])
    # The published code says -2 where there is no prompt, and -1 at the delimiters of the image.
    numbers = recorded["vp_token_indices"][0, 1:-1].clamp_min(-1)
    assert torch.equal(ours.get("visual_prompts", torch.full_like(numbers, -1)), numbers)


@pytest.mark.parametrize("name", FACTS["patch_masks"])
def test_patches_of_regions(name):
    masks = {}
    for case in CASES:
        masks |= dict(zip(FACTS["cases"][case]["prompt_masks"], prompt_masks(case).values(), strict=True))
    assert np.array_equal(covered_patches(masks[name], (4, 6), 16), np.array(FACTS["patch_masks"][name], bool))


@pytest.mark.parametrize("case", CASES)
def test_embeddings_and_hidden_states(model, processor, case):
    recorded, ours = tensors(case), inputs(processor, case)
    patches = mark_patches(ours["pixel_values"], ours.get("visual_prompts"))
    images = PackedImages.from_grids(GRID, patches, model.config)
    assert torch.equal(images.position_ids, recorded["prefix_position_ids"][:, 0])
    embeddings, *_, last = model.model.residual_stream(patches, images)
    close(embeddings, recorded["prefix_embeds"][0])
    close(model.model.norm(last), recorded["prefix_last_hidden_state"][0])


@pytest.mark.parametrize("case", CASES)
def test_first_logits_whether_the_image_is_cached_or_not(model, processor, case):
    recorded, ours = tensors(case), inputs(processor, case)
    close(model(**ours).logits[0, -1], recorded["first_logits"][0])
    cache, _ = model.model.encode_image(ours["pixel_values"], GRID, ours.get("visual_prompts"))
    text = recorded["text_ids"]
    close(model(input_ids=text, **{CACHE: cache}).logits[0, -1], recorded["first_logits"][0])


def test_upsampled_features(model):
    recorded = tensors(0)
    upsampled = model.mask_head.upsample(recorded["patch_features"])
    close(upsampled, recorded["upsampled"])
    close(model.mask_head.image_feature_projector(upsampled), recorded["image_features"])


@pytest.mark.parametrize("case", WITH_MASKS)
def test_masks(model, processor, case):
    recorded = tensors(case)
    logits = model.mask_logits(recorded["patch_features"], recorded["seg_hidden_states"])
    close(logits, recorded["mask_logits"])
    close(model.mask_head.seg_token_projector(recorded["seg_hidden_states"]), recorded["seg_embeddings"])
    masks = resize_masks(logits, (60, 90))
    # What lies so close to the threshold that rounding may decide.
    assert (masks != recorded["masks"].bool().numpy()).sum() <= 1

    ours = inputs(processor, case)
    _, features = model.model.encode_image(ours["pixel_values"], GRID, ours.get("visual_prompts"))
    close(features, recorded["patch_features"])


@pytest.mark.parametrize("case", WITH_MASKS)
def test_answers_with_masks(chat, case):
    facts = FACTS["cases"][case]
    start = facts["prefix_answer"] or ""
    region = next(iter(prompt_masks(case).values()), None)
    text, masks = answer_from(chat, question(case), start, region, FACTS["max_new_tokens"])
    assert text == start + facts["prediction"]
    assert masks.dtype == bool
    assert masks.shape == (facts["num_masks"], 60, 90)
    assert (masks != tensors(case)["masks"].bool().numpy()).sum() <= 1


@pytest.mark.parametrize("case", NO_MASKS)
def test_answers_about_several_regions(model, processor, case):
    """`generate` takes the prompts of patches beside their pixels."""
    ours = inputs(processor, case)
    options = {"max_new_tokens": FACTS["max_new_tokens"], "do_sample": False}
    said = model.generate(**ours, **options)[0, ours["input_ids"].shape[1] :]
    assert processor.decode(said).strip() == FACTS["cases"][case]["prediction"]


def test_training_losses(model):
    recorded, facts = load_file(GOLDEN / "train.safetensors"), FACTS["train"]
    batch = {name: recorded[name] for name in ("input_ids", "labels")}
    batch |= {"pixel_values": recorded["vision_patches"], "image_grid_hw": GRID, "mask_labels": [recorded["gt_masks"]]}
    points = model.config.train_num_points
    try:
        model.config.train_num_points = facts["num_points"]
        torch.manual_seed(facts["seed"])
        outputs = model(**batch)
    finally:
        model.config.train_num_points = points
    close(outputs.mask_logits[0], recorded["mask_logits"])
    expected = facts["loss_mask"], facts["loss_dice"], facts["lm_loss_unscaled"]
    losses = outputs.mask_loss, outputs.dice_loss, outputs.text_loss
    assert [loss.item() for loss in losses] == pytest.approx(expected, rel=1e-5)
    assert outputs.loss.item() == pytest.approx(facts["loss_mask"] + facts["loss_dice"] + facts["llm_loss"], rel=1e-5)
    assert outputs.hidden_states is None


def test_points(model):
    recorded, facts = load_file(GOLDEN / "train.safetensors"), FACTS["train"]
    ratios = facts["oversample_ratio"], facts["importance_sample_ratio"]
    torch.manual_seed(facts["seed"])
    points = uncertain_points(recorded["mask_logits"], facts["num_points"], *ratios)
    assert_close(points, recorded["point_coords"])
    assert_close(sample_points(recorded["mask_logits"], points), recorded["sampled_pred"], rtol=1e-4, atol=1e-5)
    assert_close(sample_points(recorded["gt_masks"].float(), points), recorded["sampled_gt"])


def test_the_prompt_of_training(processor):
    """Each turn is tokenized by itself, and answers end with a token of their own."""
    facts = FACTS["train"]
    turns = [(turn["from"], turn["value"]) for turn in facts["conversation"]]
    messages = [{"role": "user" if who == "human" else "assistant", "content": text} for who, text in turns]
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": messages[0]["content"]}]
    text = processor.apply_chat_template(messages, tokenize=False)
    assert text.replace("<vision><vpatch></vision>", "<vision><vpatch>*24</vision>") == facts["text"]
    [(ids, _)] = processor.tokenize([text], [(4, 6)])
    assert [ids] == load_file(GOLDEN / "train.safetensors")["input_ids"].tolist()


def test_every_published_tensor_is_used():
    """A changed name, here or in the file, would leave random weights behind."""
    model, info = PixelSailForCausalLM.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    stored = load_file(CHECKPOINT / "model.safetensors")
    assert len(stored) == len(model.state_dict())
    name = "image_feature_projector.2.weight"
    assert torch.equal(model.mask_head.get_parameter(name), stored[name])
    assert json.loads((CHECKPOINT / "config.json").read_text())["model_type"] == "qwen"
    assert model.config.model_type == "pixel_sail"
    assert model.generation_config.eos_token_id == [274, 272]


def test_losses_of_perfect_masks_vanish(model):
    """And those of inverted masks do not: nothing but the agreement of both decides."""
    inside = torch.zeros(1, 32, 48)
    inside[:, 8:24, 10:40] = 1
    logits = (inside * 2 - 1) * 50
    right, wrong = mask_losses(logits, inside, model.config), mask_losses(-logits, inside, model.config)
    assert right[1] < 0.2 < 0.8 < wrong[1]
    assert right[0] < 2 < 20 < wrong[0]
