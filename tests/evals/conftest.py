import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """Sixty small images of two classes, told apart by their color, in folders of classes."""
    folder = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for number in range(60):
        name = ("cat", "dog")[number % 2]
        height, width = rng.integers(20, 60, 2)
        pixels = rng.integers(0, 120, (height, width, 3)) + np.array([120, 0, 0] if name == "cat" else [0, 0, 120])
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02d}.png")
    return folder
