"""Types of what a JSON file holds, checked before it is believed."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require_type(value: Any, annotation: Any, name: str = "it") -> None:
    """Makes sure that a value is what a type of JSON's values says, such as `list[tuple[float, str | None]]`.

    A whole number is also a float, true and false are no numbers, and a tuple may be given as a list.

    Args:
        value: The value.
        annotation: Its type.
        name: How to call it.

    Raises:
        TypeError: If it is something else; the message names the value.
    """
    if not _is_of(value, annotation):
        raise TypeError(f"{name} is {reprlib.repr(value)}")


def require_fields(values: Any, owner: Any) -> dict[str, Any]:
    """Makes sure that fields have the types that a dataclass, or a mapping of names to types, gives them.

    Args:
        values: What JSON has made of an object.
        owner: The dataclass or the mapping. Fields that neither names, or that are missing, are left to the caller.

    Returns:
        The same values.

    Raises:
        TypeError: If it is no object, or a field has a value of another type.
    """
    if not isinstance(values, dict):
        raise TypeError(f"it is {reprlib.repr(values)} and has no fields")
    for name, annotation in _types_of(owner).items():
        if name in values:
            require_type(values[name], annotation, name)
    return values


def _types_of(owner: Any) -> Mapping[str, Any]:
    if not is_dataclass(owner):
        types: Mapping[str, Any] = owner
        return types
    hints = get_type_hints(owner)
    return {field.name: hints[field.name] for field in fields(owner)}


def _is_of(value: Any, annotation: Any) -> bool:
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(_is_of(value, choice) for choice in inner)
    if kind is Literal:
        return value in inner
    if kind in (list, tuple):
        return isinstance(value, (list, tuple)) and _are_of(value, kind, inner)
    if kind is dict:
        return isinstance(value, dict) and all(_is_of(one, (inner or (Any, Any))[1]) for one in value.values())
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, NoneType if kind is None else kind)


def _are_of(values: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether the elements of a list, or of a tuple of fixed or of any length, have their types."""
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(values) == len(inner) and all(map(_is_of, values, inner))
    return not inner or all(_is_of(value, inner[0]) for value in values)
