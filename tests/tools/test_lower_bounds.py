from importlib.metadata import requires

import pytest

from tools.lower_bounds import lower_bounds


def test_every_dependency_of_the_core_has_a_lower_bound():
    pins = lower_bounds(requires("sail-encoder"))
    assert {"torch", "transformers", "timm", "numpy"} <= {pin.split("==")[0] for pin in pins}


def test_extras_are_left_out_and_a_missing_bound_is_named():
    assert lower_bounds(["jsonargparse[signatures]>=4.48", 'ray>=2; extra == "ray"']) == ["jsonargparse==4.48"]
    with pytest.raises(ValueError, match="'tqdm' has no lower bound"):
        lower_bounds(["tqdm"])
