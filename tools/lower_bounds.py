"""Constraints that hold every dependency of the core at its lower bound, for `make lowest`.

python -m tools.lower_bounds > bounds.txt     # where sail-encoder is installed, if only without its dependencies
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import requires

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,.-]+\])?>=(?P<bound>[\w.]+)")


def lower_bounds(requirements: Iterable[str]) -> list[str]:
    """Pins, such as `torch==2.11`, from requirements of the core as package metadata has them.

    Requirements of extras, which carry a marker, are left out.

    Raises:
        ValueError: If a requirement has no lower bound.
    """
    pins = []
    for requirement in requirements:
        if ";" in requirement:
            continue
        bound = _REQUIREMENT.match(requirement)
        if bound is None:
            raise ValueError(f"'{requirement}' has no lower bound; write the lowest that `make lowest` passes on")
        pins.append(f"{bound['name']}=={bound['bound']}")
    return pins


if __name__ == "__main__":
    try:
        print("\n".join(lower_bounds(requires("sail-encoder") or ())))
    except ValueError as error:
        sys.exit(f"lower_bounds: {error}")
