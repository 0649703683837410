"""SAIL's classes under transformers' own common tests."""

import unittest

import torch
from helpers import random_patches, small_config
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from transformers.testing_utils import torch_device

from sail_encoder import SailConfig, SailForCausalLM, SailModel

# Low numbers, because some tests cut the vocabulary at its end.
START, PATCH, END = 3, 4, 5


class SailModelTester:
    """Small models and inputs with an image before each text.

    The images have one patch each, because some tests cut all inputs, the packed pixels too, to the batch size.
    """

    batch_size, text_length, grid = 7, 7, (1, 1)
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 96
    is_training = True

    def __init__(self, parent):
        self.parent = parent
        self.seq_length = self.text_length + self.grid[0] * self.grid[1] + 2

    def get_config(self):
        return small_config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=512,
            pad_token_id=0,
            vision_patch_size=4,
            vision_start_token_id=START,
            image_token_id=PATCH,
            vision_end_token_id=END,
        )

    def prepare_config_and_inputs(self):
        config = self.get_config()
        rows, columns = self.grid
        grids = [self.grid] * self.batch_size
        text = ids_tensor([self.batch_size, self.text_length], 80) + 10
        image = torch.tensor([START, *[PATCH] * rows * columns, END], device=torch_device).expand(self.batch_size, -1)
        inputs = {
            "input_ids": torch.cat((image, text), dim=1),
            "pixel_values": random_patches(grids, patch_dim=config.patch_dim).to(torch_device),
            "image_grid_hw": torch.tensor(grids, device=torch_device),
        }
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return config, inputs

    prepare_config_and_inputs_for_common = prepare_config_and_inputs


class SailModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (SailModel, SailForCausalLM)
    additional_model_inputs = ["pixel_values", "image_grid_hw"]

    def setUp(self):
        self.model_tester = SailModelTester(self)
        self.config_tester = ConfigTester(self, config_class=SailConfig, has_text_modality=True, hidden_size=32)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skipUnless(hasattr(GenerationTesterMixin, "test_greedy_generate"), "Tests of `generate` are not here")
    def test_generation_tester_mixin_inheritance(self):
        super().test_generation_tester_mixin_inheritance()

    @unittest.skip("SAIL has one rotary embedding; a configuration that asks for another is refused")
    def test_model_rope_scaling_frequencies(self):
        pass

    test_model_rope_scaling_from_config_0_linear = test_model_rope_scaling_frequencies
    test_model_rope_scaling_from_config_1_dynamic = test_model_rope_scaling_frequencies
    test_model_rope_scaling_from_config_2_yarn = test_model_rope_scaling_frequencies

    @unittest.skip("A checkpoint without patch embedding, such as this test's empty one, is refused")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    @unittest.skip("Images without pixels or grids, or with positions of words, are refused; text alone runs it")
    def test_generate_from_random_inputs_embeds(self):
        pass

    test_generate_continue_from_inputs_embeds = test_generate_from_random_inputs_embeds
    test_generate_with_and_without_position_ids = test_generate_from_random_inputs_embeds
    test_left_padding_compatibility = test_generate_from_random_inputs_embeds


def run_again(*names):
    """Brings tests of `generate` back that a class above leaves out."""

    def restore(case):
        for name in names:
            setattr(case, name, getattr(GenerationTesterMixin, name, None))
        return case

    return restore


class SailTextTester(SailModelTester):
    """Text alone."""

    def prepare_config_and_inputs(self):
        config, inputs = super().prepare_config_and_inputs()
        self.seq_length = self.text_length
        ids = inputs["input_ids"][:, -self.text_length :]
        return config, {"input_ids": ids, "attention_mask": random_attention_mask(ids.shape)}

    prepare_config_and_inputs_for_common = prepare_config_and_inputs


@run_again(
    "test_generate_from_random_inputs_embeds",
    "test_generate_continue_from_inputs_embeds",
    "test_generate_with_and_without_position_ids",
    "test_left_padding_compatibility",
)
class SailTextTest(SailModelTest):
    additional_model_inputs = []
    # Text leaves the patch embedding without a gradient.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = SailTextTester(self)
        self.config_tester = ConfigTester(self, config_class=SailConfig, has_text_modality=True, hidden_size=32)
