"""Going on from a cache by hand, without saying where the tokens sit."""

import copy

import pytest
import torch
from helpers import prompt_ids, random_patches, relative_error
from transformers.cache_utils import DynamicCache, StaticCache

from sail_encoder.models.cache_name import CACHE

GRIDS = [(2, 3), (4, 2)]
TAIL = [7, 8, 9, 10]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def images(grids=GRIDS):
    return {"pixel_values": random_patches(grids), "image_grid_hw": torch.tensor(grids)}


def prompts(tail=()):
    """Two prompts of one length, about images of six and of eight patches; the shorter one is padded on the left."""
    rows = [prompt_ids(grid, (1, 5, 6, *tail)) for grid in GRIDS]
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }


def caches(model):
    return [DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=32)]


def go_on(model, cache, tokens, seen):
    """Logits [batch, tokens, vocabulary] of tokens that follow a cache of the prompts."""
    ids = torch.tensor([tokens] * len(GRIDS))
    mask = torch.cat((prompts()["attention_mask"], torch.ones(len(GRIDS), seen + len(tokens) - 13)), dim=1)
    return model(input_ids=ids, attention_mask=mask.long(), past_key_values=cache).logits


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_that_is_given_is_filled(small_model, name):
    """Under either name that releases of transformers have for it, and it comes back under that of this release."""
    for cache in caches(small_model):
        output = small_model(**prompts(), **images(), **{name: cache}, use_cache=True)
        assert output[CACHE] is cache
        assert cache.get_seq_length() == 13
        assert all(layer.keys[:, :, :13].abs().amin(dim=(0, 1, 3)).min() > 0 for layer in cache.layers)
    grid = GRIDS[1]
    cache = small_model.model.encode_prefix(**images([grid]))
    assert [layer.get_seq_length() for layer in cache.layers] == [10] * small_model.config.num_hidden_layers


def test_generate_fills_the_cache_that_is_given(small_model):
    cache = DynamicCache(config=small_model.config)
    output = small_model.generate(**prompts(), **images(), **{CACHE: cache}, max_new_tokens=4, min_new_tokens=4)
    assert output.shape[1] == 13 + 4
    assert cache.get_seq_length() == 13 + 3


@pytest.mark.parametrize("kind", [0, 1])
def test_text_after_images_equals_one_pass(small_model, kind):
    whole = small_model(**prompts(TAIL), **images()).logits
    cache = caches(small_model)[kind]
    small_model(**prompts(), **images(), past_key_values=cache)
    steps = [go_on(small_model, cache, [token], 13 + step) for step, token in enumerate(TAIL)]
    assert relative_error(torch.cat(steps, dim=1), whole[:, 13:]) < 1e-5


def test_a_copied_and_a_cropped_cache_know_their_positions(small_model):
    whole = small_model(**prompts(TAIL), **images()).logits[:, 13:]
    cache = DynamicCache()
    small_model(**prompts(), **images(), past_key_values=cache)
    fork = copy.deepcopy(cache)
    for token in (50, 51, 52):
        go_on(small_model, cache, [token], cache.get_seq_length())
    cache.crop(-3)
    for kept in (fork, cache):
        assert relative_error(go_on(small_model, kept, TAIL, 13), whole) < 1e-5


def test_compiled_decoding_does_not_lose_the_positions(small_model):
    whole = small_model(**prompts(TAIL), **images()).logits[:, 13:]
    cache = StaticCache(config=small_model.config, max_cache_len=32)
    small_model(**prompts(), **images(), past_key_values=cache)
    step = torch.compile(small_model.forward, backend="eager", fullgraph=True)
    columns = [torch.tensor([[token]] * 2) for token in TAIL[:2]]
    mask = torch.ones(2, 32, dtype=torch.long)
    mask[0, :2] = 0
    # The two delimiters, the longer side of the image and three words.
    positions = torch.tensor([[2 + 3 + 3], [2 + 4 + 3]]).expand(3, -1, -1)
    first = step(columns[0], position_ids=positions, attention_mask=mask[:, :14], past_key_values=cache).logits
    second = small_model(columns[1], attention_mask=mask[:, :15], past_key_values=cache).logits
    assert relative_error(torch.cat((first, second), dim=1), whole[:, :2]) < 1e-5


def test_a_later_image_equals_one_pass(small_model):
    first, second = prompt_ids(GRIDS[0]), prompt_ids(GRIDS[1], (1, 9))
    whole = small_model(input_ids=torch.tensor([first + second]), **images()).logits
    cache = DynamicCache()
    patches = random_patches(GRIDS)
    for ids, pixels, grid in ((first, patches[:6], GRIDS[0]), (second, patches[6:], GRIDS[1])):
        given = {"pixel_values": pixels, "image_grid_hw": torch.tensor([grid])}
        last = small_model(input_ids=torch.tensor([ids]), **given, past_key_values=cache).logits
    assert relative_error(last, whole[:, len(first) :]) < 1e-5


def test_a_prefix_of_the_encoder_path_is_continued_by_text(small_model):
    grid = GRIDS[1]
    cache = small_model.model.encode_prefix(**images([grid]))
    text = small_model(input_ids=torch.tensor([[1, 5, 6]]), past_key_values=cache).logits
    whole = small_model(input_ids=torch.tensor([prompt_ids(grid)]), **images([grid])).logits
    assert relative_error(text, whole[:, -3:]) < 1e-5


def test_what_is_not_known_is_refused(small_model):
    cache = DynamicCache()
    small_model(**prompts(), **images(), past_key_values=cache)
    ids = torch.tensor([[7], [7]])
    repeated, cropped = copy.deepcopy(cache), copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    cropped.crop(-5)
    foreign = DynamicCache()
    for index, layer in enumerate(cache.layers):
        foreign.update(layer.keys, layer.values, index)
    with pytest.raises(ValueError, match="a cache of 4 x 13 tokens: it held 2 x 13"):
        small_model(input_ids=ids.repeat(2, 1), past_key_values=repeated)
    with pytest.raises(ValueError, match="a cache of 2 x 8 tokens: it held 2 x 13"):
        small_model(input_ids=ids, past_key_values=cropped)
    with pytest.raises(ValueError, match="filled by another model or in compiled code"):
        small_model(input_ids=ids, past_key_values=foreign)


def test_a_cache_that_is_emptied_starts_anew(small_model):
    cache = DynamicCache()
    small_model(**prompts(), **images(), past_key_values=cache)
    cache.crop(-cache.get_seq_length())
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 7]])
    for text in (ids[:, :2], ids[:, 2:]):
        last = small_model(input_ids=text, past_key_values=cache).logits
    assert relative_error(last, small_model(input_ids=ids).logits[:, 2:]) < 1e-5
