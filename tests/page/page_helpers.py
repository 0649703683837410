"""What tests of the page share: images as files, a head, and what they need beyond the package."""

import io
import os
import shutil

import pytest
import torch
from helpers import noise
from PIL import Image

from heads.dense.registry import TrainedHead, build_dense_head, save_dense_head
from sail_encoder.backbones.spec import FeatureSpec

CLASSES = ["background", "leaf", "petal", "sky"]


def require(module):
    """A module without which a test is skipped, or fails where it has to run."""
    if os.environ.get("SAIL_BROWSER_TESTS") == "required":
        __import__(module)
    return pytest.importorskip(module, reason=f"needs {module}; make browser installs it and runs these tests")


def find_chromium():
    """Path of the system's Chromium, without which a test is skipped, or fails where it has to run."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("SAIL_BROWSER_TESTS") == "required":
        pytest.fail(f"none of {', '.join(names)} is installed; make browser installs Chromium")
    if found is None:
        pytest.skip("needs Chromium; make browser installs it and runs these tests")
    return found


def png(pixels):
    """A file of an image uint8 [height, width, 3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noisy_png(seed=0, height=140, width=196):
    """A file of random pixels."""
    return png(noise(height, width, seed))


def save_random_head(folder):
    """A head that tells four classes apart at random."""
    torch.manual_seed(0)
    head = build_dense_head("linear", [256], len(CLASSES))
    save_dense_head(folder, TrainedHead("linear", head, FeatureSpec("sail-tiny", (5,)), CLASSES))
    return folder
