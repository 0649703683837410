"""Options of `sail probe`: which probes there are, and which options nothing would read.

The latter are refused, since who gives one believes that it counts.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from heads.contract import HeadError
from heads.registry import require_head
from heads.settings import rename_settings
from heads.targets import Kind
from sail_encoder.io.errors import UserError

PROBES = ("linear", "logistic", "ridge", "knn", "attentive")
STEPWISE = ("linear", "attentive")


def default_probes(task: Kind, grids: bool = True, online: bool = False) -> str:
    """The probes that are fitted where none are named: all that can be.

    Args:
        task: Kind of the targets; logistic regression has no numbers.
        grids: Whether there are grids, which the attentive probe needs.
        online: Whether images are augmented, which only probes that are trained step by step can see.
    """
    unfit = {"logistic"} if task == "regression" else set()
    unfit |= set() if grids else {"attentive"}
    return ",".join(name for name in (STEPWISE if online else PROBES) if name not in unfit)


def parse_probes(probes: str | Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Names and settings of probes, from names separated by commas or from a mapping.

    Raises:
        HeadError: If there is none, or no probe of such a name.
    """
    if isinstance(probes, str):
        probes = {name.strip(): None for name in probes.split(",") if name.strip()}
    if not probes:
        raise HeadError("no probe was named; give some as --probes knn,logistic")
    for name in probes:
        require_head(name)
    return {
        name: rename_settings(settings or {}, f"probe '{name}'") if name in STEPWISE else dict(settings or {})
        for name, settings in probes.items()
    }


_ONLINE = ("crop", "test_resize", "workers")
_EXTRACTED = ("resize", "max_tokens", "store_dtype", "baselines")
BACKBONE_OPTIONS = ("weights", "random_weights", "max_tiles", "msac", "project")
"""Options that say how a backbone is loaded, in the order of `choose_backbone`."""

_STORED = ("model", *BACKBONE_OPTIONS, "layers", "norm", "exif_rotate", "precision", *_EXTRACTED)


@dataclass(frozen=True)
class CropOptions:
    """Rule by which images are cropped.

    Attributes:
        side: Of the crops, in pixels.
        workers: Processes that read images, for each process that trains.
        test_resize: The shorter side that images are brought to before their center is cropped for testing.
    """

    side: int = 224
    workers: int = 8
    test_resize: int = 256

    @classmethod
    def of(cls, side: int | None, workers: int | None, test_resize: int | None = None) -> "CropOptions":
        """With the defaults in place of what is None; images are tested at 256/224 of the crop's side.

        Raises:
            UserError: If the crop would not fit into test images.
        """
        side = cls.side if side is None else side
        test_resize = round(side * cls.test_resize / cls.side) if test_resize is None else test_resize
        if test_resize < side:
            raise UserError(f"--test_resize cannot be {test_resize}; allowed is {side} or more, the side of the crops")
        return cls(side, cls.workers if workers is None else workers, test_resize)


def refuse_unread(command: Callable[..., int], asked: Mapping[str, Any], stored: bool) -> None:
    """Refuses options of `sail probe` that nothing would read.

    Args:
        command: Whose options they are; one that has its default is as good as none.
        asked: The options.
        stored: Whether the data are features that were extracted before.

    Raises:
        UserError: If there is one.
    """
    if stored and asked["online"]:
        raise UserError(f"{asked['data']} holds features, but --online needs the images; name these")
    if stored:
        _refuse(command, asked, _STORED, f"with the features in {asked['data']}, which are there already")
    if asked["online"]:
        _refuse(command, asked, _EXTRACTED, "with --online true, which looks at crops and stores no features")
    else:
        _refuse(command, asked, _ONLINE, "without --online true")


def refuse_model_options(command: Callable[..., int], asked: Mapping[str, Any], folder: str) -> None:
    """Refuses options of `sail sweep` that choose a model or its features, beside features that are stored.

    Raises:
        UserError: If there is one.
    """
    names = [name for name in (*_STORED, "resize", "max_tokens") if name in asked]
    _refuse(command, asked, names, f"with the features in {folder}, which are there already")


def _refuse(command: Callable[..., int], asked: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    parameters = inspect.signature(command).parameters
    for name in names:
        if asked[name] != parameters[name].default:
            raise UserError(f"--{name} has no effect {where}; leave it out")
