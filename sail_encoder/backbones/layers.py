"""Numbers of layers: one way of counting, timm's, for every backbone and every command."""

import re
from collections.abc import Sequence
from typing import TypeAlias

from sail_encoder.io.errors import UserError

LayerSpec: TypeAlias = "int | str | Sequence[int]"
"""One index, several, `all`, `lastN` or `evenN`; 0 is the output of the first block, negatives count from the end."""


_BY_DEPTH = re.compile(r"all|(last|even)[0-9]+")


def check_layers(spec: LayerSpec) -> None:
    """Makes sure that a layer specification is understood, whatever the depth of the model is.

    Raises:
        UserError: If it is not.
    """
    if isinstance(spec, str) and not _BY_DEPTH.fullmatch(spec):
        _read_indices(spec)


def resolve_layers(spec: LayerSpec, num_layers: int) -> list[int]:
    """Turns a layer specification into block indices.

    Args:
        spec: An index, a list of them, or text: indices separated by commas, `all`, `last4` for the last four, `even4`
            for the ends of four equal parts of the depth.
        num_layers: Blocks of the backbone.

    Returns:
        Indices from 0 to `num_layers - 1`, in the order asked for.

    Raises:
        UserError: If an index is out of range, repeated, or the text is not understood.
    """
    indices = _parse(spec, num_layers)
    for index in indices:
        if not -num_layers <= index < num_layers:
            raise UserError(f"layer {index} does not exist; this model has {-num_layers} to {num_layers - 1}")
    resolved = [index % num_layers for index in indices]
    if not resolved or len(set(resolved)) < len(resolved):
        raise UserError(f"layers '{spec}' name {'a layer twice' if resolved else 'no layer'}")
    return resolved


def _parse(spec: LayerSpec, num_layers: int) -> list[int]:
    if isinstance(spec, int):
        return [spec]
    if not isinstance(spec, str):
        return [int(index) for index in spec]
    if spec == "all":
        return list(range(num_layers))
    for word in ("last", "even"):
        count = spec.removeprefix(word)
        if count != spec and count.isdecimal():
            return _spread(word, int(count), num_layers)
    return _read_indices(spec)


def _read_indices(spec: str) -> list[int]:
    try:
        return [int(index) for index in spec.strip("[] ").split(",")]
    except ValueError:
        raise UserError(f"layers '{spec}' are not understood; use -1, 0,11,23, all, last4 or even4") from None


def _spread(word: str, count: int, num_layers: int) -> list[int]:
    if not 1 <= count <= num_layers:
        raise UserError(f"layers '{word}{count}' need 1 to {num_layers} layers, as many as this model has")
    if word == "last":
        return list(range(num_layers - count, num_layers))
    return [num_layers * part // count - 1 for part in range(1, count + 1)]
