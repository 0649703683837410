"""What `import sail_encoder` offers."""

import subprocess
import sys
from importlib.metadata import version
from pkgutil import iter_modules

import pytest

import sail_encoder


@pytest.mark.parametrize("name", sail_encoder.__all__)
def test_every_name_is_there(name):
    assert getattr(sail_encoder, name).__name__ == name


def test_no_module_hides_a_name():
    """A module of the same name would take its place as soon as anything imports it."""
    modules = {module.name for module in iter_modules(sail_encoder.__path__)}
    assert modules > {"backbones", "extraction"}
    assert not modules & set(sail_encoder.__all__)


def test_functions_stay_functions_whatever_is_imported_first():
    check = "import sail_encoder.commands.extract, sail_encoder; assert callable(sail_encoder.extract)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_one_version():
    assert sail_encoder.__version__ == version("sail-encoder")
