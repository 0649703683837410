"""What all heads share: which features they were fitted on, and how they are saved and loaded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from sail_encoder.io.errors import UserError
from sail_encoder.io.files import replacing, write_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, DESCRIPTION = "head.safetensors", "head.json"


class HeadError(UserError):
    """A head that cannot be used as asked; the message says why in one line."""


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from; a head takes only features of the kind that it was fitted on, see `check`.

    Attributes:
        backbone: Name of the backbone, for people.
        weights: Fingerprint of the weights that the features depend on.
        layers: Block indices, in order.
        norm: Whether the final norm was applied.
        resize: The rule of resizing, in text form.
        max_tokens: Patches of an image at most.
        pool: How patches were pooled, `none` for grids.
        fuse: What was done with several layers: `concat` or `mean`.
    """

    backbone: str
    weights: str
    layers: tuple[int, ...]
    norm: bool = True
    resize: str = "native"
    max_tokens: int = 4096
    pool: str = "none"
    fuse: str = "concat"

    def check(self, other: "FeatureSource") -> None:
        """Compares with another source what decides the meaning of a channel: weights, layers, norm, pool and fuse.

        The name of the backbone may differ, since a copy has the same weights. So may `resize` and `max_tokens`: they
        decide at which size images are seen, and a head can be tried at another size than that of its training.

        Raises:
            HeadError: If they do not match.
        """
        for name in ("weights", "layers", "norm", "pool", "fuse"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise HeadError(
                    f"this head was fitted on {name} {mine} of {self.backbone}, not on {name} {theirs} of "
                    f"{other.backbone}; fit it again, or extract features of the same kind"
                )


@dataclass(frozen=True)
class SavedHead:
    """What is in a saved head's folder.

    Attributes:
        kind: Name of the head in the registry.
        settings: Arguments from which the head is built.
        source: Which features it was fitted on, None if that was not said.
        tensors: Its weights.
        fitted: What it has learned beside its weights, such as the names of the classes; JSON.
    """

    kind: str
    settings: dict[str, Any]
    source: FeatureSource | None
    tensors: "dict[str, Tensor]"
    fitted: dict[str, Any] = field(default_factory=dict)


def save_head(folder: str | Path, head: SavedHead) -> None:
    """Writes `head.safetensors` and `head.json`; a head that was there before is replaced when both are complete."""
    from safetensors.torch import save_file

    folder = Path(folder)
    description = {
        "kind": head.kind,
        "settings": head.settings,
        "source": asdict(head.source) if head.source else None,
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

    head = describe_head(folder)
    with _explain_damage(folder):
        return replace(head, tensors=load_file(Path(folder) / WEIGHTS))


def describe_head(folder: str | Path) -> SavedHead:
    """Reads what `save_head` wrote but for the weights, which needs no torch; see `load_head`."""
    with _explain_damage(folder):
        description = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
        source = description["source"]
        return SavedHead(
            description["kind"],
            dict(description["settings"]),
            FeatureSource(**{**source, "layers": tuple(source["layers"])}) if source else None,
            {},
            description.get("fitted", {}),
        )


@contextmanager
def _explain_damage(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise HeadError(f"{folder} holds no head that can be read ({reason}); save one there first") from None
