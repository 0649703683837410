"""Base of all heads: the features that they were fitted on, saving and loading."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sail_encoder.backbones.spec import MEANING, FeatureSpec
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import read_json, replacing, require_regular, write_json
from sail_encoder.io.typed import require_fields

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, DESCRIPTION = "head.safetensors", "head.json"


class HeadError(UserError):
    """A head that cannot be used as asked; the message says why in one line."""


def require_same_features(fitted: FeatureSpec, others: FeatureSpec) -> None:
    """Compares what decides the meaning of a channel: weights, layers, norm, pool, fuse and the family's options.

    The name of the backbone may differ, since a copy has the same weights. So may the size at which images are seen: a
    head can be tried at another size than that of its training.

    Raises:
        HeadError: If they do not match.
    """
    differences = fitted.differences(others, MEANING)
    if differences:
        raise HeadError(
            f"this head was fitted on other features ({fitted.model}) than these ({others.model}): "
            f"{'; '.join(differences)}; fit it again, or extract features of the same kind"
        )


@dataclass(frozen=True)
class SavedHead:
    """Content of a saved head's folder.

    Attributes:
        kind: Name of the head in the registry.
        settings: Arguments from which the head is built.
        source: Which features it was fitted on, None if that was not said.
        tensors: Its weights.
        fitted: What it has learned beside its weights, such as the names of the classes; JSON.
    """

    kind: str
    settings: dict[str, Any]
    source: FeatureSpec | None
    tensors: "dict[str, Tensor]"
    fitted: dict[str, Any] = field(default_factory=dict)


def save_head(folder: str | Path, head: SavedHead) -> None:
    """Writes `head.safetensors` and `head.json`; a head that was there before is replaced when both are complete."""
    from safetensors.torch import save_file

    folder = Path(folder)
    description = {
        "kind": head.kind,
        "settings": head.settings,
        "source": head.source.to_json() if head.source else None,
        "fitted": head.fitted,
    }
    with replacing(folder / WEIGHTS) as weights:
        save_file({name: tensor.contiguous() for name, tensor in head.tensors.items()}, weights)
        write_json(folder / DESCRIPTION, description)


def load_head(folder: str | Path) -> SavedHead:
    """Reads what `save_head` wrote.

    Raises:
        HeadError: If the folder holds no head, or a damaged one.
    """
    from safetensors.torch import load_file

    from sail_encoder.io.weights import require_finite

    head, path = describe_head(folder), Path(folder) / WEIGHTS
    with _explain_damage(folder):
        require_regular(path)
        tensors = load_file(path)
    require_finite(tensors, path)
    return replace(head, tensors=tensors)


def describe_head(folder: str | Path) -> SavedHead:
    """Reads what `save_head` wrote but for the weights, which needs no torch; see `load_head`."""
    with _explain_damage(folder):
        kinds = {"kind": str, "settings": dict, "source": dict | None, "fitted": dict}
        description = require_fields(read_json(Path(folder) / DESCRIPTION), kinds)
        source = description["source"]
        return SavedHead(
            description["kind"],
            dict(description["settings"]),
            FeatureSpec.from_json(source) if source else None,
            {},
            description.get("fitted", {}),
        )


@contextmanager
def _explain_damage(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, SafetensorError) as error:
        reason = str(error) if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {error}"
        raise HeadError(f"{folder} holds no head that can be read ({reason}); save one there first") from None
