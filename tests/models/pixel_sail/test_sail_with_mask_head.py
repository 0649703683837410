"""A SAIL with a mask head beside it, as sail-tiny: read as a SAIL, and asked as a Pixel-SAIL."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from evals.scenes import draw_scene
from sail_encoder import PixelSailForCausalLM, SailForCausalLM, SailProcessor, load_backbone, load_chat
from sail_encoder.commands.convert import convert
from sail_encoder.io.hub import TINY_FOLDER
from sail_encoder.models.pixel_sail.published import is_pixel_sail
from sail_encoder.models.sail.configuration_sail import SailConfig

SCENE = draw_scene(130_003, (2,))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "sail"
    assert convert("sail-tiny", str(folder)) == 0
    return folder


def test_auto_classes_read_a_sail():
    assert type(AutoConfig.from_pretrained(TINY_FOLDER)) is SailConfig
    assert type(AutoProcessor.from_pretrained(TINY_FOLDER)) is SailProcessor
    for auto, found in ((AutoModelForImageTextToText, SailForCausalLM), (AutoModel, SailForCausalLM.trunk_class)):
        model, info = auto.from_pretrained(TINY_FOLDER, output_loading_info=True)
        assert type(model) is found
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


def test_chat_and_backbone_are_those_of_the_sail(plain_sail):
    assert load_backbone("sail-tiny").spec.family == load_backbone(str(plain_sail)).spec.family == "sail"
    assert load_chat("sail-tiny").engine.family.name == "Pixel-SAIL"
    question, sail = "How many things are there?", load_chat(str(plain_sail))
    assert sail.engine.family.name == "SAIL"
    assert load_chat("sail-tiny").ask(question, SCENE.image) == sail.ask(question, SCENE.image)


def test_it_answers_with_a_mask():
    answer = load_chat("sail-tiny").ask("Please segment all things in this image.", SCENE.image)
    assert answer.replace(" ", "") == "Itis[SEG]."
    [mask] = answer.masks
    meant = SCENE.mask > 0
    assert (mask & meant).sum() / (mask | meant).sum() > 0.8


def test_a_conversion_keeps_all_of_it(converted, tmp_path):
    stored, kept = (load_file(folder / "model.safetensors") for folder in (TINY_FOLDER, converted))
    assert stored.keys() == kept.keys()
    assert all(torch.equal(stored[name], kept[name]) for name in stored)
    assert is_pixel_sail(converted)
    one, other = (PixelSailForCausalLM.from_pretrained(folder).mask_head for folder in (TINY_FOLDER, converted))
    for weight, same in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)
    assert convert("sail-tiny", str(tmp_path / "encoder"), encoder_only=True) == 0
    assert not is_pixel_sail(tmp_path / "encoder")
    (features,), (same,) = (
        load_backbone(name).encode([SCENE.image]) for name in ("sail-tiny", str(tmp_path / "encoder"))
    )
    np.testing.assert_array_equal(features.grid, same.grid)
