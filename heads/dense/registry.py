"""Dense heads by name, and saved in a folder."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from heads.contract import DESCRIPTION, WEIGHTS, HeadError, SavedHead, describe_head, load_head, save_head
from heads.registry import get_head
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.resizing import Size
from sail_encoder.io.fingerprints import digest_file
from sail_encoder.io.typed import require_fields
from sail_encoder.models.pixel_sail.published import names_pixel_sail

if TYPE_CHECKING:
    from heads.dense.contract import DenseHead

GROUP = "sail_encoder.dense_heads"
"""Entry points under which installed packages add dense heads."""

BUILT_IN = {
    "linear": "heads.dense.linear:LinearHead",
    "upernet": "heads.dense.upernet:UperNetHead",
    "knn": "heads.dense.neighbors:NeighborHead",
}

Fit = Literal["resize", "pad"]
"""How images are brought to whole patches, see `heads.dense.inference.Inference`."""


def build_dense_head(kind: str, in_channels: list[int], num_classes: int, **options: Any) -> "DenseHead":
    """Builds a head of a kind.

    Args:
        kind: Its name, see `BUILT_IN`.
        in_channels: Channels of each layer's map.
        num_classes: Classes to tell apart.
        options: Its other arguments.

    Raises:
        HeadError: If there is no such head, or it cannot be built with these options.
    """
    head = get_head(kind, BUILT_IN, GROUP)
    allowed = [name for name in inspect.signature(head).parameters if name not in ("in_channels", "num_classes")]
    for name in options:
        if name not in allowed:
            raise HeadError(f"the {kind} head has no option '{name}'; it has {', '.join(allowed)}")
    try:
        return head(in_channels, num_classes, **options)
    except HeadError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise HeadError(f"the {kind} head cannot be built with {options}: {error}") from None


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """A head with all that is needed to use it.

    Attributes:
        kind: Its name, see `BUILT_IN`.
        head: The head.
        source: Which features it reads, and at which size of the image.
        classes: Names of its classes.
        mode: What it was trained on: augmented images (`online`) or grids that were extracted once (`cached`).
        window: (height, width) in pixels of the windows by which images are looked at; None looks at them as a whole.
        stride: How far a window is from the next, in pixels.
        fit: How images are brought to whole patches.
        layout: How the data set that it was trained on was laid out; None where that is not known.
        ids: The class that each id in the masks stood for, None where its pixels did not count; None likewise.
    """

    kind: str
    head: "DenseHead"
    source: FeatureSpec
    classes: list[str]
    mode: str = "online"
    window: Size | None = None
    stride: Size | None = None
    fit: Fit = "resize"
    layout: str | None = None
    ids: Mapping[int, str | None] | None = None


_SIDES = tuple[int, int] | None
_KINDS = {"classes": list[str], "mode": str, "window": _SIDES, "stride": _SIDES, "fit": Fit}
"""Types of what is said beside the settings of the head."""

_BESIDE_SETTINGS = tuple(_KINDS)


def save_dense_head(folder: str | Path, trained: TrainedHead) -> None:
    """Saves a head."""
    tensors = {name: tensor.cpu() for name, tensor in trained.head.state_dict().items()}
    settings = {**trained.head.settings, **{name: getattr(trained, name) for name in _BESIDE_SETTINGS}}
    # JSON has no numbers for keys, so the ids are kept as pairs.
    ids = None if trained.ids is None else sorted(trained.ids.items())
    fitted = {"layout": trained.layout, "ids": ids}
    save_head(folder, SavedHead(trained.kind, settings, trained.source, tensors, fitted))


def describe_dense_head(folder: str | Path) -> tuple[SavedHead, FeatureSpec]:
    """Reads what a dense head is and which features it reads, without its weights and without torch.

    Raises:
        HeadError: If the folder holds no dense head.
    """
    if not (Path(folder) / DESCRIPTION).exists() and names_pixel_sail(folder):
        raise HeadError(f"{folder} is a Pixel-SAIL, which has no classes; ask it by sail segment refer or sail chat")
    saved = describe_head(folder)
    return saved, _require_dense(saved, folder)


def _require_dense(saved: SavedHead, folder: str | Path) -> FeatureSpec:
    if "classes" not in saved.settings or saved.source is None:
        raise HeadError(f"{folder} holds a head of kind '{saved.kind}', not one that sail segment train has written")
    try:
        require_fields(saved.settings, _KINDS)
        require_fields(saved.fitted, {"layout": str | None, "ids": list[tuple[int, str | None]] | None})
    except TypeError as error:
        raise HeadError(f"{Path(folder) / DESCRIPTION} is damaged ({error}); train the head again") from None
    return saved.source


def load_dense_head(folder: str | Path) -> TrainedHead:
    """Loads a head in evaluation mode.

    Raises:
        HeadError: If the folder holds no dense head, or one whose weights do not fit its settings.
    """
    saved = load_head(folder)
    source = _require_dense(saved, folder)
    settings = dict(saved.settings)
    # Heads of the first version fit images in one way only.
    settings.setdefault("fit", "resize")
    missing = [name for name in _BESIDE_SETTINGS if name not in settings]
    if missing:
        raise HeadError(f"{Path(folder) / DESCRIPTION} lacks {', '.join(missing)}; train the head again")
    classes, mode, window, stride, fit = (settings.pop(name) for name in _BESIDE_SETTINGS)
    head = build_dense_head(saved.kind, **settings)
    try:
        head.load_state_dict(saved.tensors)
    except RuntimeError:
        raise HeadError(
            f"the weights of the {saved.kind} head in {folder} do not fit its settings; train it again"
        ) from None
    window, stride = (tuple(size) if size else None for size in (window, stride))
    layout, ids = (saved.fitted.get(name) for name in ("layout", "ids"))
    ids = None if ids is None else dict(ids)
    return TrainedHead(saved.kind, head.eval(), source, classes, mode, window, stride, fit, layout, ids)


def fingerprint_head(folder: str | Path) -> str:
    """Names the weights of a saved head."""
    return digest_file(Path(folder) / WEIGHTS)
