"""Pixel-SAIL beyond the recorded cases: sizes, inputs that do not fit, files."""

import json
import shutil

import pytest
import torch
import transformers
from helpers import prompt_ids, random_patches, small_config
from pixel_sail_golden import CHECKPOINT, answer_from, inputs, prompt_masks, tensors
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sail_encoder import Chat, CheckpointError, PixelSailConfig, PixelSailForCausalLM, PixelSailProcessor, UserError
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.pixel_sail.checkpoint import load_pixel_sail
from sail_encoder.models.pixel_sail.losses import mean_mask_losses
from sail_encoder.models.pixel_sail.mask_head import MaskHead
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailModel
from sail_encoder.models.pixel_sail.published import read_config
from sail_encoder.models.sail.modeling_sail import SailForCausalLM

SEG = 80
CPU = torch.device("cpu")


def small_pixel_config(**changes):
    ids = {"seg_token_id": SEG, "visual_prompt_token_ids": list(range(60, 75))}
    fields = {**small_config().to_dict(), **ids, "mask_channels": 16, "train_num_points": 64, **changes}
    fields.pop("architectures"), fields.pop("model_type")
    return PixelSailConfig(**fields)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return PixelSailForCausalLM(small_pixel_config()).eval().requires_grad_(False)


@pytest.mark.parametrize(("patch_size", "blocks"), [(8, 2), (14, 3), (16, 3), (32, 4), (4, 1)])
def test_upsampling_blocks(patch_size, blocks):
    """As many as the published loop makes: one, and one for each halving until a stride of four or less."""
    config = small_pixel_config(vision_patch_size=patch_size)
    assert config.num_upsampling_blocks == blocks
    logits = MaskHead(config)(torch.zeros(2, 3, 64), torch.zeros(5, 64))
    assert logits.shape == (5, 2 * 2**blocks, 3 * 2**blocks)


def test_wide_transformers_get_a_pre_projector():
    narrow, wide = MaskHead(small_pixel_config()), MaskHead(small_pixel_config(head_channels=24))
    assert not any("pre_projector" in name for name in narrow.state_dict())
    shapes = {name: tuple(x.shape) for name, x in wide.state_dict().items()}
    assert shapes["image_feature_pre_projector.0.weight"] == (64, 64)
    assert shapes["image_feature_pre_projector.2.weight"] == (24, 64)
    assert shapes["upsample_blocks.0.0.weight"] == (24, 24, 2, 2)
    assert shapes["seg_token_projector.0.weight"] == (24, 64)
    patches, segs = torch.randn(2, 3, 64), torch.randn(1, 64)
    assert wide(patches, segs).shape == (1, 16, 24)
    # By hand: the pre-projector is what stands between the patches and the blocks.
    before = wide.image_feature_pre_projector
    projected = before[2](before[0](patches).relu()).permute(2, 0, 1)[None]
    assert_close(wide.upsample(patches), wide.upsample_blocks(projected)[0].permute(1, 2, 0))


def test_images_of_one_grid_are_upsampled_together():
    head, patches = MaskHead(small_pixel_config(head_channels=24)), torch.randn(3, 2, 4, 64)
    pixels = head.embed_pixels(patches)
    assert pixels.shape[:3] == (3, 16, 32)
    for image, of_image in zip(patches, pixels, strict=True):
        assert_close(of_image, head.embed_pixels(image))


def test_the_widest_head_is_the_published_one():
    assert small_pixel_config(hidden_size=2048, num_attention_heads=16).head_channels == 1024
    assert small_pixel_config().head_channels == 64


def test_a_published_folder_with_a_pre_projector(model, tmp_path):
    """Its sizes come from the tensors, under the published names."""
    folder = tmp_path / "wide"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "model.safetensors").chmod(0o644)
    config = PixelSailConfig.from_pretrained(CHECKPOINT)
    config.head_channels, config.mask_channels = 24, 8
    torch.manual_seed(0)
    head = MaskHead(config).state_dict()
    stored = {k: x for k, x in load_file(CHECKPOINT / "model.safetensors").items() if k.startswith("single_")}
    save_file({**stored, **{k: x.contiguous() for k, x in head.items()}}, folder / "model.safetensors")
    loaded, _ = load_pixel_sail(str(folder), CPU, torch.float32)
    assert (loaded.config.head_channels, loaded.config.mask_channels) == (24, 8)
    assert all(torch.equal(x, head[k]) for k, x in loaded.mask_head.state_dict().items())


def test_saving_and_the_auto_classes(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(model.state_dict())
    recorded = inputs(processor, 3)
    expected = model(**recorded).logits
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
        again = auto.from_pretrained(tmp_path)
        assert type(again) is PixelSailForCausalLM
        assert torch.equal(again(**recorded).logits, expected)
        assert again.generation_config.eos_token_id == [274, 272]
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is PixelSailModel
    read = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(read) is PixelSailProcessor
    again = inputs(read, 3)
    assert all(torch.equal(again[name], recorded[name]) for name in recorded)


def test_the_transformer_alone_from_published_files(model):
    trunk = PixelSailModel.from_pretrained(CHECKPOINT)
    assert all(torch.equal(x, model.model.state_dict()[name]) for name, x in trunk.state_dict().items())


def test_a_mask_does_not_depend_on_others(small):
    torch.manual_seed(0)
    features, segs = torch.randn(3, 4, 64), torch.randn(3, 64)
    together = small.mask_logits(features, segs)
    for seg, logits in zip(segs, together, strict=True):
        assert_close(small.mask_logits(features, seg[None])[0], logits)


def test_the_prefix_of_the_image_does_not_see_the_question(small):
    """Features from the image alone are those within a whole prompt."""
    pixels, grid = random_patches([(2, 3)]), torch.tensor([[2, 3]])
    numbers = torch.tensor([0, 0, -1, -1, 2, -1])
    _, features = small.model.encode_image(pixels, grid, numbers)
    ids = torch.tensor([prompt_ids((2, 3), (5, 6, SEG))])
    options = {"visual_prompts": numbers, "output_hidden_states": True}
    outputs = small(ids, pixels, grid, **options)
    assert_close(outputs.hidden_states[-1][0, 1:7], features.flatten(0, 1))
    cache, _ = small.model.encode_image(pixels, grid, numbers)
    continued = small.model(input_ids=ids[:, 8:], **{CACHE: cache}).last_hidden_state
    assert_close(continued[0, -1], outputs.hidden_states[-1][0, -1])


def test_visual_prompts_change_the_patches_that_they_cover_alone(small):
    pixels, grid = random_patches([(2, 2)]), torch.tensor([[2, 2]])
    numbers = torch.tensor([-1, 3, -1, -1])
    marked = torch.cat((pixels, numbers[:, None].float()), dim=1)
    ids = torch.tensor([prompt_ids((2, 2))])
    _, plain = small.model._embed(ids, None, pixels)
    _, prompted = small.model._embed(ids, None, marked)
    name = small.model.embed_tokens.weight[63]
    assert_close((prompted - plain)[0, 2], small.model.vp_embed(name), rtol=1e-4, atol=1e-6)
    assert torch.equal(prompted[0, [0, 1, 3, 4, 5]], plain[0, [0, 1, 3, 4, 5]])
    nowhere = small(ids, pixels, grid, visual_prompts=torch.full((4,), -1)).logits
    assert torch.equal(nowhere, small(ids, pixels, grid).logits)


def test_prompts_of_patches_survive_beams_and_half_precision(small):
    """Their numbers travel beside the pixels, which `generate` repeats for each beam."""
    model = PixelSailForCausalLM(small.config).eval()
    model.load_state_dict(small.state_dict())
    ids = torch.tensor([prompt_ids((2, 2), (5, 60, 6))])
    options = {"input_ids": ids, "pixel_values": random_patches([(2, 2)]), "image_grid_hw": torch.tensor([[2, 2]])}
    beams = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    numbers = torch.tensor([14, 14, 14, -1])
    assert len(model.generate(**options, visual_prompts=numbers, **beams)) == 2
    half = model.to(torch.bfloat16).model
    _, embedded = half._embed(ids, None, torch.cat((options["pixel_values"], numbers[:, None]), dim=1))
    _, plain = half._embed(ids, None, options["pixel_values"])
    assert (embedded != plain).any(dim=-1)[0].tolist() == [False, True, True, True, *[False] * 5]


def test_several_images_and_rows_in_training(small):
    """Each mask belongs to the last image before its token; losses are means over all masks of the batch."""
    grids = torch.tensor([[2, 2], [1, 3]])
    pixels = random_patches([(2, 2), (1, 3)])
    first, second = prompt_ids((2, 2), (5, SEG, 6, SEG)), prompt_ids((1, 3), (SEG, 7, 8, 9, 5))
    ids = torch.tensor([first, second])
    labels = ids.clone()
    masks = [torch.rand(2, 20, 30) > 0.5, torch.rand(1, 9, 27) > 0.5]
    torch.manual_seed(1)
    outputs = small(ids, pixels, grids, labels=labels, mask_labels=masks)
    assert [tuple(x.shape) for x in outputs.mask_logits] == [(2, 16, 16), (1, 8, 24)]
    _, features = small.model.encode_image(pixels[4:], grids[1:])
    states = small(ids, pixels, grids, output_hidden_states=True).hidden_states[-1]
    assert_close(outputs.mask_logits[1], small.mask_logits(features, states[1, 5:6]), rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    expected = mean_mask_losses(list(outputs.mask_logits), masks, small.config)
    assert_close((outputs.mask_loss, outputs.dice_loss), expected)
    assert_close(outputs.loss, sum(expected) + 0.1 * outputs.text_loss)


def test_hidden_states_are_kept_if_asked_for(small):
    ids, masks = torch.tensor([prompt_ids((1, 2), (SEG,))]), [torch.ones(1, 4, 4)]
    image = {"pixel_values": random_patches([(1, 2)]), "image_grid_hw": torch.tensor([[1, 2]])}
    assert small(ids, **image, mask_labels=masks).hidden_states is None
    asked = small(ids, **image, mask_labels=masks, output_hidden_states=True).hidden_states
    assert len(asked) == small.config.num_hidden_layers + 1


def test_text_alone_counts_in_full(small):
    ids = torch.tensor([prompt_ids((1, 2), (5, 6, 7))])
    image = {"pixel_values": random_patches([(1, 2)]), "image_grid_hw": torch.tensor([[1, 2]])}
    outputs = small(ids, **image, labels=ids, mask_labels=[torch.zeros(0, 4, 4)])
    assert outputs.mask_logits is None
    assert torch.equal(outputs.loss, outputs.text_loss)
    assert torch.equal(outputs.loss, small(ids, **image, labels=ids).loss)


@pytest.mark.parametrize(("text", "masks"), [((5, 6), 1), ((SEG, SEG), 1), ((SEG,), 0)])
def test_masks_and_tokens_must_agree(small, text, masks):
    ids = torch.tensor([prompt_ids((1, 2), text)])
    with pytest.raises(ValueError, match=r"\[SEG\] tokens after them"):
        small(ids, random_patches([(1, 2)]), torch.tensor([[1, 2]]), mask_labels=[torch.zeros(masks, 4, 4)])


def test_a_token_without_an_image_before_it_has_no_mask(small):
    """It must not be taken for one of the image in the row above."""
    ids = torch.tensor([prompt_ids((1, 2), (5, 6)), [SEG, 5, 6, 7, 8, 9]])
    with pytest.raises(ValueError, match="1 have no image before them"):
        small(ids, random_patches([(1, 2)]), torch.tensor([[1, 2]]), mask_labels=[torch.zeros(1, 4, 4)])


def test_as_many_prompts_as_patches(small):
    ids = torch.tensor([prompt_ids((1, 2))])
    with pytest.raises(ValueError, match="there are 2 patches"):
        small(ids, random_patches([(1, 2)]), torch.tensor([[1, 2]]), visual_prompts=torch.zeros(3))


def test_unknown_token_ids_are_told(small):
    model = PixelSailForCausalLM(small_pixel_config(seg_token_id=None))
    ids, image = torch.tensor([prompt_ids((1, 2), (SEG,))]), (random_patches([(1, 2)]), torch.tensor([[1, 2]]))
    with pytest.raises(UserError, match="seg_token_id"):
        model(ids, *image, mask_labels=[torch.zeros(1, 4, 4)])


def test_the_transformer_is_a_sail(small):
    """With the same weights and no visual prompts, both give the same numbers."""
    config = small_config()
    sail = SailForCausalLM(config).eval()
    sail.load_state_dict({k: x for k, x in small.state_dict().items() if k in sail.state_dict()})
    ids = torch.tensor([prompt_ids((2, 3), (5, 6, 7))])
    image = {"pixel_values": random_patches([(2, 3)]), "image_grid_hw": torch.tensor([[2, 3]])}
    assert torch.equal(sail(ids, **image).logits, small(ids, **image).logits)
    cache = sail.model.encode_prefix(**image)
    ours, _ = small.model.encode_image(**image)
    text = ids[:, 8:]
    assert torch.equal(sail(text, **{CACHE: cache}).logits, small(text, **{CACHE: ours}).logits)


def test_biases_are_for_those_made_of_qwen():
    names = {name for name in SailForCausalLM(small_config()).state_dict() if name.endswith(".bias")}
    assert not names
    biased = SailForCausalLM(small_config(attention_bias=True)).state_dict()
    assert {name.split(".")[-2] for name in biased if name.endswith(".bias")} == {"q_proj", "k_proj", "v_proj"}


def copy_of_golden(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(CHECKPOINT, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def test_half_precision_finds_nearly_the_same_masks():
    half, processor = load_pixel_sail(str(CHECKPOINT), CPU, torch.bfloat16)
    _, masks = answer_from(Chat(half, processor), "Segment what <Prompt0> holds.", "[SEG]", prompt_masks(3)[0], 1)
    expected = tensors(3)["masks"].bool().numpy()
    assert (masks != expected).mean() < 0.02


def test_a_sail_is_no_pixel_sail(small_checkpoint, plain_sail):
    for name in map(str, (plain_sail, small_checkpoint)):
        with pytest.raises(CheckpointError, match="without mask head"):
            read_config(name)
        with pytest.raises(CheckpointError, match="without mask head"):
            load_pixel_sail(name, CPU, torch.float32)
    with pytest.raises(CheckpointError, match="without mask head"):
        PixelSailForCausalLM.from_pretrained(small_checkpoint)


def test_other_models_are_no_pixel_sail(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama' checkpoint"):
        read_config(str(tmp_path))


@pytest.mark.parametrize("name", ["mask_head", "vp_embed"])
def test_missing_tensors_are_told(model, tmp_path, name):
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    rest = {key: x for key, x in stored.items() if name not in key}
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks \d+ tensors .* first .*{name}"):
        PixelSailForCausalLM.from_pretrained(tmp_path)


def test_damaged_weights_are_told(tmp_path):
    folder = copy_of_golden(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        load_pixel_sail(str(folder), CPU, torch.float32)


def test_a_tokenizer_without_the_tokens_is_told(tmp_path):
    folder = copy_of_golden(tmp_path)
    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="no tokenizer file knows"):
        PixelSailConfig.from_pretrained(folder)


def test_no_image_is_lost_between_patches_and_picture(model, processor):
    """A mask logit at a corner belongs to the pixels at that corner."""
    recorded = tensors(0)
    features = torch.zeros_like(recorded["patch_features"])
    features[0, 0] = recorded["patch_features"][0, 0] * 3
    logits = model.mask_logits(features, recorded["seg_hidden_states"])[0]
    plain = model.mask_logits(torch.zeros_like(features), recorded["seg_hidden_states"])[0]
    changed = (logits - plain).abs() > 1e-4
    assert changed[:8, :8].float().mean() > 0.9
    assert not changed[16:].any()
    assert not changed[:, 16:].any()
