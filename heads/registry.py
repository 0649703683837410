"""Heads by name: ours, and those that installed packages add under the entry point group `sail_encoder.heads`.

Dense heads have a table and a group of their own (`heads.dense.registry`).
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.contract import HeadError, load_head
from sail_encoder.backbones.spec import FeatureSpec

if TYPE_CHECKING:
    from heads.probe import Probe

GROUP = "sail_encoder.heads"

BUILT_IN = {
    "linear": "heads.linear:LinearProbe",
    "logistic": "heads.logistic:LogisticProbe",
    "ridge": "heads.ridge:RidgeProbe",
    "knn": "heads.knn:KNNProbe",
    "attentive": "heads.attentive:AttentiveProbe",
}


def head_names(built_in: Mapping[str, str] = BUILT_IN, group: str = GROUP) -> list[str]:
    """Names of all heads of a table and an entry point group, ours first."""
    return [*built_in, *sorted(entry.name for entry in entry_points(group=group) if entry.name not in built_in)]


def require_head(name: str, built_in: Mapping[str, str] = BUILT_IN, group: str = GROUP) -> None:
    """Makes sure that there is a head of a name, without importing it; see `get_head`.

    Raises:
        HeadError: If there is none.
    """
    if name not in built_in and name not in (names := head_names(built_in, group)):
        raise HeadError(f"no head '{name}'; there is {', '.join(names)}")


def get_head(name: str, built_in: Mapping[str, str] = BUILT_IN, group: str = GROUP) -> type[Any]:
    """The class of a head.

    Args:
        name: Its name.
        built_in: Our heads, as `module:class` by name.
        group: The entry point group in which others are looked for.

    Raises:
        HeadError: If there is none of that name.
    """
    require_head(name, built_in, group)
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return getattr(import_module(module), attribute)
    return next(entry for entry in entry_points(group=group) if entry.name == name).load()


def load_probe(folder: str | Path, source: FeatureSpec | None = None, device: str = "auto") -> "Probe":
    """Loads a saved probe of any kind.

    Args:
        folder: What `Probe.save` has written.
        source: The features that it is to be used on; a probe of other features is refused.
        device: Where to compute, wherever it was fitted; `auto` takes a GPU where there is one.

    Raises:
        HeadError: If there is none, or it was fitted on features of another source.
    """
    saved = load_head(folder)
    probe: Probe = get_head(saved.kind).from_saved(saved, source, device)
    return probe
