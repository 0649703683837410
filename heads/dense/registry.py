"""Dense heads by name, and saved in a folder."""

import inspect
from pathlib import Path
from typing import Any

from heads.contract import FeatureSource, HeadError, SavedHead, load_head, save_head
from heads.dense.contract import DenseHead
from heads.registry import get_head

GROUP = "sail_encoder.dense_heads"
"""Entry points under which installed packages add dense heads."""

BUILT_IN = {
    "linear": "heads.dense.linear:LinearHead",
    "upernet": "heads.dense.upernet:UperNetHead",
    "knn": "heads.dense.neighbors:NeighborHead",
}


def build_dense_head(kind: str, in_channels: list[int], num_classes: int, **options: Any) -> DenseHead:
    """Builds a head of a kind.

    Args:
        kind: Its name, see `BUILT_IN`.
        in_channels: Channels of each layer's map.
        num_classes: Classes to tell apart.
        options: Its other arguments.

    Raises:
        HeadError: If there is no such head, or it has no such option.
    """
    head = get_head(kind, BUILT_IN, GROUP)
    allowed = [name for name in inspect.signature(head).parameters if name not in ("in_channels", "num_classes")]
    for name in options:
        if name not in allowed:
            raise HeadError(f"the {kind} head has no option '{name}'; it has {', '.join(allowed)}")
    return head(in_channels, num_classes, **options)


def save_dense_head(folder: str | Path, kind: str, head: DenseHead, source: FeatureSource, classes: list[str]) -> None:
    """Saves a head, with the names of its classes."""
    tensors = {name: tensor.cpu() for name, tensor in head.state_dict().items()}
    save_head(folder, SavedHead(kind, {**head.settings, "classes": list(classes)}, source, tensors))


def load_dense_head(folder: str | Path) -> tuple[DenseHead, FeatureSource, list[str]]:
    """Loads a head in evaluation mode.

    Returns:
        The head, the source of its features, and the names of its classes.

    Raises:
        HeadError: If the folder holds no dense head.
    """
    saved = load_head(folder)
    settings = dict(saved.settings)
    classes = settings.pop("classes", None)
    if classes is None or saved.source is None:
        raise HeadError(f"{folder} holds a head of kind '{saved.kind}', not one that sail segment train has written")
    head = build_dense_head(saved.kind, **settings)
    head.load_state_dict(saved.tensors)
    return head.eval(), saved.source, classes
