"""A call that a library deprecates fails the test that makes it: `filterwarnings` in pyproject.toml."""

import warnings

import pytest
import torch
from transformers import GradientCheckpointingLayer

OURS = ("sail_encoder", "sail_encoder.chat.batch", "heads.knn", "evals", "sail_cli")
WRAPPERS = ("torch.nn.modules.module", "transformers.modeling_layers")


def warn(category, module):
    warnings.warn_explicit("it is deprecated", category, "file.py", 1, module)


@pytest.mark.parametrize("module", OURS + WRAPPERS)
@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning])
def test_what_our_code_calls_is_an_error(category, module):
    with pytest.raises(category, match="it is deprecated"):
        warn(category, module)


@pytest.mark.parametrize("module", ["numpy", "sail_encoders", "torch.nn.modules.modules"])
def test_what_libraries_call_among_themselves_is_none(module):
    with warnings.catch_warnings(record=True) as caught:
        warn(DeprecationWarning, module)
    assert [warning.category for warning in caught] == [DeprecationWarning]


class Layer(GradientCheckpointingLayer):
    """A layer with an argument that has another name now, reported as transformers does."""

    def forward(self, x, **others):
        if "old_name" in others:
            warnings.warn("old_name is deprecated", FutureWarning, stacklevel=2)
        return x


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: layer.forward])
def test_a_deprecated_argument_of_a_layer_is_an_error(wrap):
    call, x = wrap(Layer()), torch.zeros(1)
    assert call(x) is x
    with pytest.raises(FutureWarning, match="old_name"):
        call(x, old_name=1)
