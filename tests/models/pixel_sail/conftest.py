import pytest
import torch
from pixel_sail_golden import CHECKPOINT

from sail_encoder import Chat
from sail_encoder.models.pixel_sail.checkpoint import load_pixel_sail


@pytest.fixture(scope="session")
def loaded():
    return load_pixel_sail(str(CHECKPOINT), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def model(loaded):
    return loaded[0].requires_grad_(False)


@pytest.fixture(scope="session")
def processor(loaded):
    return loaded[1]


@pytest.fixture
def chat(model, processor):
    return Chat(model, processor)
