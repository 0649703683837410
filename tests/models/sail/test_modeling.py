import copy

import pytest
import torch
from helpers import END, PATCH, prompt_ids, random_patches, relative_error, small_config
from transformers import AttentionInterface, DynamicCache, Trainer, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.sail.modeling_sail import SailForCausalLM, SailModel, SailRotaryEmbedding
from sail_encoder.models.sail.positions import image_positions, prefix_positions, text_and_image_positions


def test_positions_of_a_3x5_image():
    time, rows, columns = image_positions(3, 5).tolist()
    assert rows == [0, *[1] * 5, *[2] * 5, *[3] * 5, 6]
    assert columns == [0, *[1, 2, 3, 4, 5] * 3, 6]
    assert time == [0, *[1] * 15, 6]


def test_positions_continue_after_an_image_and_ignore_padding():
    row = prompt_ids((2, 3), text=(1, 5))
    padded = torch.tensor([[7, 7, *row]])
    mask = torch.tensor([[0, 0, *[1] * len(row)]])
    plain = text_and_image_positions(torch.tensor([row]), [(2, 3)], PATCH, END, None)
    shifted = text_and_image_positions(padded, [(2, 3)], PATCH, END, mask)
    assert torch.equal(shifted[:, :, 2:], plain)
    assert plain[:, 0, -2:].tolist() == [[5, 6]] * 3
    assert torch.equal(plain[:, 0, :8], prefix_positions([(2, 3)]))


def test_rotary_rows_turn_fast_and_columns_slowly():
    config = small_config(head_dim=16)
    cos, _ = SailRotaryEmbedding(config)(torch.zeros(1), torch.tensor([[0], [3], [7]]))
    frequencies = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    angles = torch.cat((3 * frequencies[:4], 7 * frequencies[4:]))
    torch.testing.assert_close(cos[0], torch.cat((angles, angles)).cos())


def test_rotary_survives_casting_the_model(small_model):
    half = copy.deepcopy(small_model).bfloat16()
    positions = prefix_positions([(60, 60)])
    exact = small_model.model.rotary_emb(torch.zeros(1), positions)[0]
    rounded = half.model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), positions)[0]
    assert torch.equal(exact.bfloat16(), rounded)


def test_image_sees_itself_in_full_on_both_paths(small_model):
    """The first patch depends on the last one, on either path, with nothing said about masks."""
    grid = (2, 3)
    patches = random_patches([grid])
    changed = patches.clone()
    changed[-1] += 1
    grids = torch.tensor([grid])
    with torch.no_grad():
        encoder = [small_model.model(pixel_values=p, image_grid_hw=grids)[0][0] for p in (patches, changed)]
        ids = torch.tensor([prompt_ids(grid)])
        language = [
            small_model.model(input_ids=ids, pixel_values=p, image_grid_hw=grids)[0][0, 1] for p in (patches, changed)
        ]
    assert relative_error(*encoder) > 1e-3
    assert relative_error(*language) > 1e-3
    assert relative_error(language[0], encoder[0]) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefix_does_not_depend_on_the_text(small_model, attention):
    model = copy.deepcopy(small_model)
    model.set_attn_implementation(attention)
    grid, grids = (3, 2), torch.tensor([(3, 2)])
    patches = random_patches([grid])
    with torch.no_grad():
        alone = model.model(pixel_values=patches, image_grid_hw=grids).last_hidden_state
        for text in ((1, 5), (1, 7, 8, 9)):
            out = model.model(
                input_ids=torch.tensor([prompt_ids(grid, text)]), pixel_values=patches, image_grid_hw=grids
            )
            assert relative_error(out.last_hidden_state[0, 1:7], alone) < 1e-5


def test_the_attention_of_a_model_can_be_changed(small_model):
    """Eager attention keeps its weights: those of a prefix are full, those of text causal."""
    model = copy.deepcopy(small_model)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    weights = model(**image_prompt(), output_attentions=True).attentions
    assert len(weights) == model.config.num_hidden_layers
    seen = weights[0][0].amin(dim=0) > 0
    length = seen.shape[0]
    expected = torch.ones(length, length).tril().bool()
    expected[:6, :6] = True
    assert torch.equal(seen, expected)


def test_text_is_causal(small_model):
    grid, grids = (2, 2), torch.tensor([(2, 2)])
    patches = random_patches([grid])
    with torch.no_grad():
        short = small_model.model(
            input_ids=torch.tensor([prompt_ids(grid, (1, 5))]), pixel_values=patches, image_grid_hw=grids
        )
        long = small_model.model(
            input_ids=torch.tensor([prompt_ids(grid, (1, 5, 9, 9))]), pixel_values=patches, image_grid_hw=grids
        )
    assert relative_error(long[0][:, :8], short[0]) < 1e-5


def image_prompt(grid=(2, 2)):
    """A prompt about one image."""
    ids = torch.tensor([prompt_ids(grid)])
    return {"input_ids": ids, "pixel_values": random_patches([grid]), "image_grid_hw": torch.tensor([grid])}


def test_text_alone(small_model):
    ids = torch.tensor([[1, 4, 5, 6]])
    with torch.no_grad():
        logits = small_model(input_ids=ids).logits
        embedded = small_model(inputs_embeds=small_model.get_input_embeddings()(ids)).logits
    assert logits.shape == (1, 4, 96)
    torch.testing.assert_close(embedded, logits)


def test_image_tokens_without_pixels_are_refused(small_model):
    with pytest.raises(ValueError, match="no pixel_values"):
        small_model(input_ids=torch.tensor([prompt_ids((2, 2))]))


def test_embedded_image_tokens_without_pixels_are_refused(small_model):
    ids = torch.tensor([prompt_ids((2, 2))])
    with pytest.raises(ValueError, match="no pixel_values"):
        small_model(inputs_embeds=small_model.get_input_embeddings()(ids))


def test_positions_of_words_for_patches_are_refused(small_model):
    inputs = image_prompt()
    count = inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match="would number patches like words"):
        small_model(**inputs, position_ids=torch.arange(count)[None])


def test_attention_that_would_be_causal_over_images_is_refused(small_checkpoint):
    """transformers has no mask for an attention that others have registered, and its layers are causal without one."""
    AttentionInterface.register("made_up", sdpa_attention_forward)
    model = SailForCausalLM.from_pretrained(small_checkpoint, attn_implementation="made_up")
    assert model(input_ids=torch.tensor([[1, 4, 5]])).logits.shape == (1, 3, 96)
    with pytest.raises(ValueError, match="'made_up' cannot see images in full"):
        model(**image_prompt())


def test_pixels_that_do_not_fit_are_refused(small_model):
    patches, grids = random_patches([(2, 2)]), torch.tensor([(2, 2)])
    with pytest.raises(ValueError, match="4 patches, but the prompt holds 6"):
        small_model(input_ids=torch.tensor([prompt_ids((2, 3))]), pixel_values=patches, image_grid_hw=grids)
    with pytest.raises(ValueError, match="4 patches, but image_grid_hw describes 6"):
        small_model.model(pixel_values=patches, image_grid_hw=torch.tensor([(2, 3)]))


def test_pixels_and_grids_go_together(small_model):
    """Without grids the patches would be numbered like words."""
    ids, patches, grids = torch.tensor([prompt_ids((2, 2))]), random_patches([(2, 2)]), torch.tensor([(2, 2)])
    for given in ({"pixel_values": patches}, {"image_grid_hw": grids}):
        for text in ({"input_ids": ids}, {}):
            with pytest.raises(ValueError, match="go together"):
                small_model.model(**text, **given)
    cache = small_model.model.encode_prefix(patches, grids)
    for given in ({"pixel_values": patches}, {CACHE: cache}):
        with pytest.raises(ValueError, match="needs image_grid_hw"):
            small_model.generate(input_ids=ids, **given, max_new_tokens=2)


def test_calls_without_input_are_refused(small_model):
    with pytest.raises(ValueError, match="there is no input"):
        small_model.model()
    with pytest.raises(ValueError, match="SailModel gives features of images alone"):
        small_model(pixel_values=random_patches([(2, 2)]), image_grid_hw=torch.tensor([(2, 2)]))


@pytest.mark.parametrize("wrong", [[(1, 4)], [(1, 2), (2, 2)], [(2, 2), (1, 2), (1, 1)], [(1, 6)]])
def test_grids_of_other_images_are_refused(small_model, wrong):
    """Also where there are as many patches as in all images together, or as many images."""
    right, ids = [(2, 2), (1, 2)], torch.tensor([prompt_ids((2, 2)) + prompt_ids((1, 2))])
    inputs = {"input_ids": ids, "pixel_values": random_patches(right), "image_grid_hw": torch.tensor(wrong)}
    for call in (small_model, small_model.generate):
        with pytest.raises(ValueError, match=r"images of \[4, 2\] patches, but image_grid_hw describes"):
            call(**inputs)


def test_positions_of_text_may_have_two_dimensions(small_model):
    ids, positions = torch.tensor([[1, 4, 5, 6]]), torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(small_model(input_ids=ids, position_ids=positions).logits, small_model(input_ids=ids).logits)
    shifted = small_model(input_ids=ids, position_ids=2 * positions).logits
    assert not torch.allclose(shifted, small_model(input_ids=ids).logits)


def test_texts_packed_into_a_row_do_not_see_each_other(small_model):
    """What transformers' DataCollatorWithFlattening makes of texts."""
    texts = [torch.tensor([[1, 4, 5, 6]]), torch.tensor([[1, 7, 8]])]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    together = small_model(input_ids=torch.cat(texts, 1), position_ids=positions).logits
    alone = [small_model(input_ids=ids).logits for ids in texts]
    torch.testing.assert_close(together, torch.cat(alone, 1))


def test_only_needed_blocks_run(small_model):
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(small_model.model.layers)
    ]
    small_model.model.encode_images(random_patches([(2, 2)]), torch.tensor([(2, 2)]), layers=[0, 1])
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_other_rotary_types_are_refused():
    with pytest.raises(ValueError, match="yarn"):
        small_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})


def test_random_models_on_the_meta_device_stay_there():
    with torch.device("meta"):
        model = SailModel(small_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_labels_give_a_loss_and_gradients():
    torch.manual_seed(0)
    model = SailForCausalLM(small_config())
    ids = torch.tensor([prompt_ids((2, 2))])
    labels = torch.where(ids < 90, ids, -100)
    grids = torch.tensor([(2, 2)])
    loss = model(input_ids=ids, pixel_values=random_patches([(2, 2)]), image_grid_hw=grids, labels=labels).loss
    everything = model(input_ids=ids, pixel_values=random_patches([(2, 2)]), image_grid_hw=grids, labels=ids).loss
    assert torch.equal(loss, everything), "the tokens of the image do not count"
    loss.backward()
    assert loss > 0
    assert model.model.vis_embed.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_gives_the_same_gradients_and_no_cache():
    torch.manual_seed(0)
    model = SailForCausalLM(small_config()).train()
    inputs = {**image_prompt(), "labels": image_prompt()["input_ids"]}
    gradients = []
    for checkpoint in (False, True):
        if checkpoint:
            # Its name until transformers 5.23, and from then on.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients.append(model.model.vis_embed.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert output.get(CACHE) is None
    with pytest.raises(ValueError, match="filled twice by gradient checkpointing"):
        model(**inputs, cache=DynamicCache())


def test_trainer_does_not_count_the_tokens_of_images(tmp_path):
    """It divides by the number of labels where a model lets it, and those of images are many."""
    model = SailForCausalLM(small_config()).eval()
    inputs = image_prompt((4, 4))
    ids = inputs["input_ids"][0]
    masked = torch.where(ids > 80, -100, ids)
    losses = []
    for labels in (ids, masked):
        example = {**inputs, "labels": labels[None]}
        settings = TrainingArguments(str(tmp_path), max_steps=1, logging_steps=1, learning_rate=0.0, use_cpu=True)
        trainer = Trainer(model, settings, train_dataset=[0], data_collator=lambda _, example=example: example)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    expected = small_loss(model, inputs, masked)
    assert losses == pytest.approx([expected, expected], rel=1e-3)


def small_loss(model, inputs, labels):
    with torch.no_grad():
        return float(model(**inputs, labels=labels[None]).loss)
