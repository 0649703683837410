"""SAIL-VL's image processor and processor under transformers' own common tests."""

import unittest

import numpy as np
from helpers import GOLDEN
from sklearn.datasets import load_sample_images
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin

from sail_encoder.models.sail_vl.image_processing_sail_vl import SailVLImageProcessor
from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor
from tests import test_processing_common

# The tests show images by address; files of this machine need no network.
PHOTOGRAPHS = list(load_sample_images().filenames)
test_processing_common.MODALITY_INPUT_DATA["images"] = PHOTOGRAPHS
test_processing_common.url_to_local_path = lambda address: PHOTOGRAPHS[0]


class SailVLImageProcessingTester(ImageProcessingTester):
    """Images of 30 to 400 pixels in tiles of 28."""

    def __init__(self, parent, **kwargs):
        super().__init__(parent, size={"height": 28, "width": 28}, max_tiles=4, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": SailVLImageProcessor}


class SailVLImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = SailVLImageProcessingTester

    def check_tiles(self, **kinds):
        """Images come back in tiles, one after the other."""
        processor = SailVLImageProcessor(**self.image_processor_dict)
        images = self.image_processor_tester.prepare_image_inputs(equal_resolution=False, **kinds)
        together = processor(images, return_tensors="np")
        alone = [processor(image, return_tensors="np") for image in images]
        self.assertEqual(together["num_tiles"].sum(), len(together["pixel_values"]))
        for name in ("pixel_values", "num_tiles"):
            np.testing.assert_array_equal(together[name], np.concatenate([one[name] for one in alone]))

    def test_call_pil(self):
        self.check_tiles()

    def test_call_numpy(self):
        self.check_tiles(numpify=True)

    def test_call_pytorch(self):
        self.check_tiles(torchify=True)

    @unittest.skip("A tile of SAIL-VL has three channels")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skip("The published resizing is Pillow's, so there is one backend")
    def test_new_models_require_torchvision_backend(self):
        pass


class SailVLProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = SailVLProcessor
    model_id = str(GOLDEN.parent / "sail_vl2" / "checkpoint")
    # Longer than a prompt with an image of many tiles, which must not be cut.
    images_text_kwargs_max_length = 3017
    images_text_kwargs_override_max_length = 3012
    images_unstructured_max_length = 2976

    @classmethod
    def _setup_from_pretrained(cls, model_id, **kwargs):
        # The tests count a row of pixels an image, so that an image is one tile.
        return super()._setup_from_pretrained(model_id, max_tiles=1, **kwargs)

    @unittest.skip("The number of tokens of a tile follows from the model's configuration")
    def test_processor_from_pretrained_vs_from_components(self):
        pass
