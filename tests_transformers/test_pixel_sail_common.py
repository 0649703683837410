"""Pixel-SAIL's classes under transformers' own common tests."""

import unittest

from test_sail_common import SailModelTest, SailModelTester
from tests.test_configuration_common import ConfigTester

from sail_encoder import PixelSailConfig, PixelSailForCausalLM
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailModel


class PixelSailModelTester(SailModelTester):
    """The models and inputs of SAIL, with a small mask head."""

    def get_config(self):
        fields = super().get_config().to_dict()
        del fields["model_type"], fields["architectures"]
        tokens = {"seg_token_id": 6, "visual_prompt_token_ids": [7, 8, 9]}
        return PixelSailConfig(**fields, **tokens, mask_channels=8)


class PixelSailModelTest(SailModelTest):
    all_model_classes = (PixelSailModel, PixelSailForCausalLM)
    # Without masks and regions in a batch, the parts for them have no gradient.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = PixelSailModelTester(self)
        self.config_tester = ConfigTester(self, config_class=PixelSailConfig, has_text_modality=True, hidden_size=32)

    @unittest.skip("A checkpoint without mask head, such as that of the transformer alone, is refused")
    def test_base_model_prefix_loads_base_weights(self):
        pass

    test_correct_missing_keys = test_base_model_prefix_loads_base_weights


del SailModelTest
