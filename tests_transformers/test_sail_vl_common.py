"""SAIL-VL's classes under transformers' own common tests."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.testing_utils import torch_device

from sail_encoder.models.sail_vl.configuration_sail_vl import InternViTConfig, SailViTConfig, SailVLConfig
from sail_encoder.models.sail_vl.modeling_sail_vl import SailVLForConditionalGeneration
from sail_encoder.models.sail_vl.modeling_sailvit import InternViTModel, SailViTModel

# Low, because some tests cut the vocabulary at its end.
IMAGE = 3
TOWER_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class TowerTester:
    """Small towers, and images of 2 x 2 patches."""

    batch_size, image_size, is_training = 3, 8, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent, config_class, class_tokens):
        self.parent, self.config_class = parent, config_class
        self.seq_length = 4 + class_tokens

    def get_config(self):
        return self.config_class(**TOWER_SIZES, image_size=self.image_size, patch_size=4)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {
            "pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        }


class TowerTest:
    config_class: type
    class_tokens = 0
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = TowerTester(self, self.config_class, self.class_tokens)
        self.config_tester = ConfigTester(self, config_class=self.config_class, has_text_modality=False, **TOWER_SIZES)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("A tower takes pixels alone")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("A checkpoint without its weights, such as this test's empty one, is refused")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        self.assertIsInstance(self.all_model_classes[0](config).get_input_embeddings(), torch.nn.Conv2d)


class SailViTTest(TowerTest, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SailViTModel,)
    config_class = SailViTConfig


class InternViTTest(TowerTest, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (InternViTModel,)
    config_class = InternViTConfig
    class_tokens = 1


class SailVLTester:
    """Small models, and a tile of a single projected token before each text.

    One, because some tests cut all inputs, the tiles too, to the batch size.
    """

    batch_size, text_length = 7, 7
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 96
    is_training = True
    seq_length = text_length + 1
    image_size = 8

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        text = {"model_type": "qwen2", **TOWER_SIZES, "num_key_value_heads": 2, "vocab_size": self.vocab_size}
        vision = {"model_type": "sailvit", **TOWER_SIZES, "image_size": self.image_size, "patch_size": 4}
        text |= {"max_position_embeddings": 512, "pad_token_id": 0}
        return SailVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tile_size=self.image_size)

    def prepare_config_and_inputs(self):
        text = ids_tensor([self.batch_size, self.text_length], 80) + 10
        image = torch.full((self.batch_size, 1), IMAGE, device=torch_device)
        inputs = {
            "input_ids": torch.cat((image, text), dim=1),
            "pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size]),
        }
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return self.get_config(), inputs

    prepare_config_and_inputs_for_common = prepare_config_and_inputs


class SailVLTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (SailVLForConditionalGeneration,)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True

    def setUp(self):
        self.model_tester = SailVLTester(self)
        self.config_tester = ConfigTester(self, config_class=SailVLConfig, has_text_modality=False)
        # The class of a part follows from its `model_type`, and not from a table of the composite.
        self.config_tester.create_and_test_config_from_and_save_pretrained_composite = lambda: None

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("Images go with input_ids; in inputs_embeds they are included already")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("The published names keep the language head inside the language model")
    def test_model_base_model_prefix(self):
        pass

    @unittest.skip("The output is the language model's own; get_image_features gives the tower's")
    def test_multimodal_outputs_are_returned(self):
        pass

    @unittest.skip("A checkpoint without its weights, such as this test's empty one, is refused")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass
