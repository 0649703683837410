"""Checks of the settings of heads: one line for a mistake, before there are features."""

import sys
from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from heads.contract import HeadError

RENAMED = {"lrs": "learning_rates", "lr": "learning_rates", "lr_batch": "base_batch_size"}
"""Settings of gradient descent as version 0.1.0 called them, and their names."""


def rename_settings(settings: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Settings under their present names; a line on stderr says which were those of version 0.1.0.

    Args:
        settings: Of a head that is trained by gradient descent.
        owner: Whose they are, for that line.

    Raises:
        HeadError: If one is given under both names.
    """
    old = {name: RENAMED[name] for name in settings if name in RENAMED}
    renamed = {old.get(name, name): value for name, value in settings.items()}
    if len(renamed) < len(settings):
        raise HeadError(
            f"{owner} has {' and '.join(old)} beside the present names; give {', '.join(old.values())} alone"
        )
    if old:
        changes = ", ".join(f"'{name}' is now '{present}'" for name, present in old.items())
        print(f"{owner}: {changes}; the old spelling works in this release only", file=sys.stderr)
    return renamed


def as_values(name: str, values: Any, whole: bool = False) -> list[float]:
    """The values of a hyper-parameter to choose from.

    Args:
        name: Of the hyper-parameter.
        values: One positive number or a sequence of some.
        whole: Whether they have to be whole numbers.

    Raises:
        HeadError: If there is none, or one is something else.
    """
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    listed = list(plain) if isinstance(plain, Sequence) else [plain]
    if not listed or not all(_is_positive(value, whole) for value in listed):
        example = "20 or [10, 20]" if whole else "0.1 or [0.1, 1]"
        raise HeadError(f"{name} is {plain!r}; give one positive {_word(whole)} or several, such as {example}")
    return [float(value) for value in listed]


def check_positive(name: str, value: Any, whole: bool = False) -> None:
    """Makes sure that a setting is a positive number.

    Raises:
        HeadError: If it is not.
    """
    if not _is_positive(value, whole):
        raise HeadError(f"{name} is {value!r}; give a positive {_word(whole)}")


def check_at_least_zero(name: str, value: Any, whole: bool = False) -> None:
    """Makes sure that a setting is zero or a positive number.

    Raises:
        HeadError: If it is not.
    """
    if not _is_number(value, whole) or value < 0:
        raise HeadError(f"{name} is {value!r}; give 0 or a positive {_word(whole)}")


def check_share(name: str, value: Any) -> None:
    """Makes sure that a setting is a share of less than everything.

    Raises:
        HeadError: If it is not.
    """
    if not _is_number(value) or not 0 <= value < 1:
        raise HeadError(f"{name} is {value!r}; allowed is 0 up to, but not, 1")


def check_one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Makes sure that a setting is one of several words.

    Raises:
        HeadError: If it is not.
    """
    if value not in allowed:
        raise HeadError(f"{name} '{value}' is unknown; use {', '.join(allowed[:-1])} or {allowed[-1]}")


def _is_positive(value: Any, whole: bool) -> bool:
    return _is_number(value, whole) and value > 0


def _is_number(value: Any, whole: bool = False) -> bool:
    """Tells whether a value is a finite number, Python's or NumPy's; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
        return False
    return not whole or isinstance(value, Integral)


def _word(whole: bool) -> str:
    return "whole number" if whole else "number"
