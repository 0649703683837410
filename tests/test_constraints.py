"""constraints.txt: names, versions and markers for everything that `make test` installs, and nothing else."""

from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINES = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python):
    """Versions by name for a release of Python on Linux."""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found = [Requirement(line) for line in LINES]
    return {canonicalize_name(one.name): one for one in found if one.marker is None or one.marker.evaluate(machine)}


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_a_name_a_version_and_a_marker(line):
    requirement = Requirement(line)
    (version,) = requirement.specifier
    assert version.operator == "=="
    assert "+" not in version.version, "a local version, such as +cpu, is in no public index"
    assert requirement.url is None
    assert not requirement.extras


@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_has_a_pin_that_it_allows(python):
    pinned = pins(python)
    for text in requires("sail-encoder"):
        requirement = Requirement(text)
        environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": "dev"}
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if canonicalize_name(requirement.name) == "sail-encoder":
            continue
        (version,) = pinned[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(version.version), f"{requirement} and {version} on Python {python}"
