"""SAIL's image processor and processor under transformers' own common tests."""

import unittest

import numpy as np
from sklearn.datasets import load_sample_images
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin

from sail_encoder import SailImageProcessor, SailProcessor
from sail_encoder.io.hub import TINY_FOLDER
from tests import test_processing_common

# The tests show images by address; files of this machine need no network.
PHOTOGRAPHS = list(load_sample_images().filenames)
test_processing_common.MODALITY_INPUT_DATA["images"] = PHOTOGRAPHS
test_processing_common.url_to_local_path = lambda address: PHOTOGRAPHS[0]


class SailImageProcessingTester(ImageProcessingTester):
    """Images of 30 to 400 pixels, which the native rule brings to at most 64 patches."""

    def __init__(self, parent, **kwargs):
        super().__init__(parent, max_tokens=64, patch_size=14, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": SailImageProcessor}


class SailImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = SailImageProcessingTester

    def check_packed(self, **kinds):
        """Images come back packed, one after the other."""
        processor = SailImageProcessor(**self.image_processor_dict)
        images = self.image_processor_tester.prepare_image_inputs(equal_resolution=False, **kinds)
        together = processor(images, return_tensors="np")
        alone = [processor(image, return_tensors="np") for image in images]
        self.assertEqual(together["image_grid_hw"].prod(1).sum(), len(together["pixel_values"]))
        for name in ("pixel_values", "image_grid_hw"):
            np.testing.assert_array_equal(together[name], np.concatenate([one[name] for one in alone]))

    def test_call_pil(self):
        self.check_packed()

    def test_call_numpy(self):
        self.check_packed(numpify=True)

    def test_call_pytorch(self):
        self.check_packed(torchify=True)

    @unittest.skip("A patch of SAIL has three channels")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skip("The published resizing is Pillow's, so there is one backend")
    def test_new_models_require_torchvision_backend(self):
        pass


class SailProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = SailProcessor
    model_id = str(TINY_FOLDER)
    # Longer than a prompt with an image, which must not be cut.
    images_text_kwargs_max_length = 317
    images_text_kwargs_override_max_length = 312
    images_unstructured_max_length = 276

    # The tests read this attribute's name: patches are packed, what has a row an image is its grid.
    image_grid_hw = "image_grid_hw"

    def _test_apply_chat_template(self, *_):
        self.skipTest("An image comes after text of its turn, which SAIL never saw and which is refused")

    def test_processor_text_has_no_visual(self):
        self.skipTest("An image comes after text of its turn, which SAIL never saw and which is refused")
