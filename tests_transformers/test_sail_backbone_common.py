"""`SailBackbone` under transformers' own common tests of backbones."""

import unittest

import torch
from helpers import small_config
from tests.test_backbone_common import BackboneTesterMixin
from transformers.testing_utils import torch_device

from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.modeling_sail_backbone import SailBackbone


class SailBackboneTester:
    """A small configuration, and images of 3 x 5 patches."""

    batch_size = 2

    def get_config(self):
        return small_config(vision_patch_size=4)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, 12, 20, device=torch_device)}


class SailBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SailBackbone,)
    config_class = SailConfig
    has_attentions = False

    def setUp(self):
        self.model_tester = SailBackboneTester()
