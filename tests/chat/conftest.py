"""The embedded model, loaded once, and a count of the images that it encodes."""

import pytest

from sail_encoder import Chat, load_chat


@pytest.fixture(scope="module")
def loaded():
    return load_chat("sail-tiny")


@pytest.fixture
def chat(loaded):
    return Chat(loaded.model, loaded.processor)


@pytest.fixture
def count_images(loaded):
    """How many patches each forward pass embeds."""
    counts = []
    hook = loaded.model.model.vis_embed.register_forward_hook(lambda _, args, output: counts.append(len(output)))
    yield counts
    hook.remove()
