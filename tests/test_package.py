"""What `import sail_encoder` offers."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules

import pytest

import sail_encoder

ROOT = Path(__file__).parents[1]


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


def test_a_wheel_holds_configurations_and_the_embedded_checkpoint(tmp_path):
    """Built from a copy, since setuptools leaves its build folder beside the sources."""
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests*", "benchmarks", "docs", "runs", "demo")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored, symlinks=True)
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "copy", capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    names = set(zipfile.ZipFile(tmp_path / ended.stdout.splitlines()[-1]).namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"sail_encoder", "heads", "evals", "sail_cli.py"}
    shipped = {path.relative_to(ROOT) for suffix in ("yaml", "py") for path in (ROOT / "configs").rglob(f"*.{suffix}")}
    assert {f"sail_encoder/{path}" for path in shipped} <= names
    assert "sail_encoder/tiny/model.safetensors" in names
