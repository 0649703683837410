"""What is measured side by side says the same."""

import pytest
import torch
from helpers import SMALL_IDS, random_patches, small_config
from transformers.cache_utils import DynamicCache

from benchmarks import published
from benchmarks.chat import Setting, generate
from sail_encoder.models.cache_name import fork_cache
from sail_encoder.models.sail.modeling_sail import SailForCausalLM

GRID = (3, 4)


@pytest.fixture(scope="module")
def model():
    """Small, with weights large enough that its answers depend on all that it sees.

    It never prefers vision tokens or the end, which only our way forbids.
    """
    torch.manual_seed(0)
    model = SailForCausalLM(small_config(initializer_range=0.2)).eval().requires_grad_(False)
    model.lm_head.weight[[model.config.eos_token_id, *SMALL_IDS.values()]] = 0
    return model


@pytest.fixture
def setting(model):
    pixels = random_patches([GRID], patch_dim=model.config.patch_dim)
    return Setting(model, GRID, pixels, torch.tensor([1, 5, 6, 17, 40]), 12)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_published_way_and_ours_give_the_same_tokens(setting, kind):
    prefix = DynamicCache()
    published.encode_image(setting.model, setting.pixels, setting.grid, prefix)
    theirs = published.answer(setting.model, prefix, setting.grid, setting.prompt, setting.new_tokens)
    assert generate(setting, setting.new_tokens, setting.cache(kind)) == theirs
    assert len(set(theirs)) > 3, "an answer of one token over and over would tell little"


def test_the_second_question_is_the_same_on_both_sides(setting):
    theirs = DynamicCache()
    published.encode_image(setting.model, setting.pixels, setting.grid, theirs)
    with torch.no_grad():
        ours = setting.model.model.encode_prefix(setting.pixels, torch.tensor([setting.grid]))
    first, second = setting.prompt, setting.prompt.flip(0)
    for prompt in (first, second, first):
        setting.prompt = prompt
        answer = published.answer(setting.model, theirs, setting.grid, prompt, 6)
        assert generate(setting, 6, fork_cache(ours), image_is_cached=True) == answer
