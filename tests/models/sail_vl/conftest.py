"""Recorded checkpoints of the published code, and what they gave."""

import json
import shutil
from pathlib import Path

import pytest
from sail_vl_golden import CHECKPOINTS, GOLDEN, golden_set

from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor


@pytest.fixture(scope="session", params=CHECKPOINTS)
def golden(request):
    """Each recorded whole model in turn."""
    return golden_set(request.param)


@pytest.fixture(scope="session", params=CHECKPOINTS[1:])
def golden_chat(request):
    """Each recorded whole model with a tokenizer."""
    return golden_set(request.param)


@pytest.fixture(scope="session")
def model(golden):
    return golden.load().requires_grad_(False)


@pytest.fixture(scope="session")
def chat_model(golden_chat):
    return golden_chat.load().requires_grad_(False)


@pytest.fixture(scope="session")
def processor(golden_chat):
    return SailVLProcessor.from_pretrained(golden_chat.checkpoint)


@pytest.fixture
def copy_of(tmp_path):
    """A writable copy of a recorded checkpoint, by name."""

    def copy(name):
        return Path(shutil.copytree(GOLDEN / name / "checkpoint", tmp_path / name))

    return copy


@pytest.fixture
def edit_json():
    """Changes fields of a JSON file; None drops one."""

    def edit(path, **changes):
        content = json.loads(path.read_text())
        for key, value in changes.items():
            *parents, name = key.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            if value is None:
                del part[name]
            else:
                part[name] = value
        path.write_text(json.dumps(content))
        return path.parent

    return edit
