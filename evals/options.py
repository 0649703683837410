"""Options of `sail probe`: those that nothing would read are refused, since who gives one believes that it counts."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sail_encoder.errors import UserError

_ONLINE = ("crop", "workers")
_EXTRACTED = ("resize", "max_tokens", "dtype", "baselines")
_STORED = ("model", "layers", "norm", "precision", *_EXTRACTED)


@dataclass(frozen=True)
class CropOptions:
    """How images are cropped.

    Attributes:
        side: Of the crops, in pixels.
        workers: Processes that read images, for each process that trains.
    """

    side: int = 224
    workers: int = 8

    @classmethod
    def of(cls, side: int | None, workers: int | None) -> "CropOptions":
        """With the defaults in place of what is None."""
        return cls(cls.side if side is None else side, cls.workers if workers is None else workers)


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


def _refuse(command: Callable[..., int], asked: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    parameters = inspect.signature(command).parameters
    for name in names:
        if asked[name] != parameters[name].default:
            raise UserError(f"--{name} has no effect {where}; leave it out")
