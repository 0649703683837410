import json
import signal

import pytest
import torch
from helpers import GOLDEN, GOLDEN_IDS, golden_cases, small_config

from sail_encoder import load_backbone
from sail_encoder.io.hub import TINY_FOLDER
from sail_encoder.models.pixel_sail.tokens import ADDED_TOKENS
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.processing_sail import SailProcessor

LONGEST = ("test_kill.py", "test_online.py", "test_soak.py", "test_training.py", "test_ray.py", "test_command.py")
"""Files of tests that take long. Processes take files in order, and one that begins last is waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell lets what it starts in the background ignore Ctrl-C, and Python then leaves it so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden():
    """The recorded cases of the published code."""
    return list(golden_cases())


@pytest.fixture(scope="session")
def golden_backbone():
    return load_backbone(str(GOLDEN / "checkpoint"), **GOLDEN_IDS)


@pytest.fixture(scope="session")
def tiny():
    return load_backbone("sail-tiny")


@pytest.fixture(scope="session")
def published_tiny(tmp_path_factory, plain_sail):
    """sail-tiny as the Hub holds SAIL-7B: the config says "mistral" and lacks the ids of the vision tokens."""
    folder, native = tmp_path_factory.mktemp("published"), plain_sail
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).symlink_to(native / name)
    config = json.loads((native / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.endswith(("_token_id", "_token_ids"))}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2})
    )
    return folder


@pytest.fixture(scope="session")
def small_model():
    torch.manual_seed(0)
    return SailForCausalLM(small_config()).eval()


@pytest.fixture(scope="session")
def small_checkpoint(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    small_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_sail(tmp_path_factory):
    """sail-tiny without its mask head and the tokens that go with it."""
    folder = tmp_path_factory.mktemp("plain")
    model = SailForCausalLM.from_pretrained(TINY_FOLDER, dtype="auto")
    model.resize_token_embeddings(model.config.vocab_size - len(ADDED_TOKENS))
    model.save_pretrained(folder)
    SailProcessor.from_pretrained(TINY_FOLDER).save_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["content"] not in ADDED_TOKENS]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def small_backbone(small_checkpoint):
    return load_backbone(str(small_checkpoint))
