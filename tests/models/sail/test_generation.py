"""`generate`: parity with the published code, and what it could not do."""

import copy

import pytest
import torch
from helpers import (
    GOLDEN,
    GOLDEN_IDS,
    SMALL_IDS,
    golden_inputs,
    left_padded,
    prompt_ids,
    random_patches,
    small_config,
)

from sail_encoder import SailForCausalLM

GRIDS = [(2, 3), (4, 2), (1, 5)]


@pytest.fixture(scope="module")
def golden_model():
    return SailForCausalLM.from_pretrained(GOLDEN / "checkpoint", **GOLDEN_IDS)


def check_golden(model, cases, **options):
    inputs = golden_inputs(cases)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=16, pad_token_id=0, **options)
    answers = output[:, inputs["input_ids"].shape[1] :].tolist()
    for case, answer in zip(cases, answers, strict=True):
        recorded = case.tensors["generated"].tolist()
        assert answer == recorded + [0] * (len(answer) - len(recorded))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_golden_one_by_one(golden_model, golden, options):
    for case in golden:
        check_golden(golden_model, [case], **options)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_in_one_batch(golden_model, golden, attention):
    golden_model.set_attn_implementation(attention)
    check_golden(golden_model, golden)
    check_golden(golden_model, golden[::-1], cache_implementation="static")


def prompt(grid, seed):
    text = torch.randint(3, 90, (4 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()
    return prompt_ids(grid, (1, *text))


def inputs_of(model, grids):
    """Prompts about an image each, or about none where the grid is None."""
    pixels = [random_patches([grid], seed=grid[0], patch_dim=model.config.patch_dim) for grid in filter(None, grids)]
    inputs = left_padded([prompt(grid, seed) for seed, grid in enumerate(grids)])
    if pixels:
        inputs |= {"pixel_values": torch.cat(pixels), "image_grid_hw": torch.tensor([g for g in grids if g])}
    return inputs


def answers_of(model, inputs, length=8, **options):
    settings = {"do_sample": False, "max_new_tokens": length, "min_new_tokens": length, "pad_token_id": 0}
    return model.generate(**inputs, **{**settings, **options})[:, inputs["input_ids"].shape[1] :]


def one_by_one(model, grids, **options):
    whole = inputs_of(model, grids)
    pixels, images, answers = whole.get("pixel_values"), 0, []
    for row, grid in enumerate(grids):
        kept = whole["attention_mask"][row].bool()
        inputs = {name: whole[name][row : row + 1, kept] for name in ("input_ids", "attention_mask")}
        if grid:
            mine, pixels = pixels[: grid[0] * grid[1]], pixels[grid[0] * grid[1] :]
            inputs |= {"pixel_values": mine, "image_grid_hw": whole["image_grid_hw"][images : images + 1]}
            images += 1
        answers.append(answers_of(model, inputs, **options))
    return torch.cat(answers)


@pytest.mark.parametrize("grids", [GRIDS, [None, (3, 3), None], [None, None]])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_a_batch_says_what_one_by_one_says(small_model, grids, options):
    together = answers_of(small_model, inputs_of(small_model, grids), **options)
    assert torch.equal(together, one_by_one(small_model, grids, **options))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_embedded_prompts_say_the_same(small_model, options):
    inputs = inputs_of(small_model, GRIDS)
    embedded = {**inputs, "inputs_embeds": small_model.get_input_embeddings()(inputs["input_ids"])}
    del embedded["input_ids"]
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    said = small_model.generate(**embedded, **settings, **options)
    assert torch.equal(said, answers_of(small_model, inputs, length=6, **options))


def test_beams_find_what_is_likelier(small_model):
    inputs = inputs_of(small_model, GRIDS[:1])
    scores = []
    for beams in (1, 8):
        answer = answers_of(small_model, inputs, length=4, num_beams=beams)
        ids = torch.cat((inputs["input_ids"], answer), dim=1)
        images = {name: inputs[name] for name in ("pixel_values", "image_grid_hw")}
        logits = small_model(input_ids=ids, **images).logits[0, -5:-1]
        scores.append(logits.log_softmax(-1).gather(1, answer.T).sum().item())
    assert scores[1] > scores[0] + 0.1


def test_sampling_repeats_with_its_seed(small_model):
    inputs = inputs_of(small_model, GRIDS[:2])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(answers_of(small_model, inputs, length=16, do_sample=True, num_return_sequences=2))
    assert drawn[0].shape == (4, 16)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_speculation_says_the_same(small_model):
    """Prompt lookup, and assistance by another model, check several tokens at once and keep what is right."""
    inputs = inputs_of(small_model, GRIDS[:1])
    greedy = answers_of(small_model, inputs, length=20)
    assert torch.equal(answers_of(small_model, inputs, length=20, prompt_lookup_num_tokens=3), greedy)
    torch.manual_seed(1)
    assistant = SailForCausalLM(small_config()).eval()
    assert torch.equal(answers_of(small_model, inputs, length=20, assistant_model=assistant), greedy)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_vision_tokens_are_never_generated(options):
    torch.manual_seed(0)
    model = SailForCausalLM(small_config(unused_vision_token_ids=[93])).eval()
    vision = [*SMALL_IDS.values(), 93]
    with torch.no_grad():
        model.lm_head.weight[vision] *= 100
    answers = answers_of(model, inputs_of(model, GRIDS), length=12, **options)
    assert not torch.isin(answers, torch.tensor(vision)).any()


def test_logits_are_computed_where_they_are_needed(small_model):
    seen = []
    hook = small_model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    answers_of(small_model, inputs_of(small_model, GRIDS), length=5)
    hook.remove()
    assert seen == [1] * 5


def windowed(window, layers=2):
    torch.manual_seed(0)
    return SailForCausalLM(small_config(sliding_window=window, num_hidden_layers=layers)).eval()


@pytest.mark.parametrize("window", [5, 9, 14, 20])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_sliding_window_is_the_same_with_any_cache(window, options):
    """The shortest window is shorter than an image, the longest as long as the prompts."""
    model = windowed(window)
    for grids in ([(2, 3)], GRIDS):
        inputs = inputs_of(model, grids)
        without = answers_of(model, inputs, use_cache=False)
        assert torch.equal(answers_of(model, inputs, **options), without)


@pytest.mark.parametrize("window", [6, None])
def test_sliding_window_hides_from_text_what_lies_behind_it(window):
    model = windowed(window, layers=1)
    inputs = inputs_of(model, [(4, 4)])
    changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    changed["pixel_values"][:4] += 1
    before, after = (model(**given, output_hidden_states=True) for given in (inputs, changed))
    same = (before.logits == after.logits).all(-1)[0]
    assert not same[1:18].any(), "an image sees itself in full, whatever the window"
    assert same[-4:].all() == (window is not None)


def test_flash_attention_is_refused():
    """Its kernels would make the image causal without a word."""
    for kernels in ("flash_attention_2", "flash_attention_3"):
        with pytest.raises(ValueError, match=r"^SailForCausalLM does not support Flash Attention"):
            SailForCausalLM._from_config(small_config(), attn_implementation=kernels)


def test_flex_attention_sees_the_same(small_model):
    """In eager mode, since compiling takes long; a mask that ignored the image would show here as well."""
    inputs = inputs_of(small_model, [*GRIDS, None])
    real = inputs["attention_mask"].bool()
    expected = small_model(**inputs).logits
    flexible = copy.deepcopy(small_model)
    flexible.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        torch.testing.assert_close(flexible(**inputs).logits[real], expected[real], rtol=1e-4, atol=1e-5)
