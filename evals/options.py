"""Options of `sail probe`: those that nothing would read are refused, since who gives one believes that it counts."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sail_encoder.errors import UserError

_ONLINE = ("crop", "test_resize", "workers")
_EXTRACTED = ("resize", "max_tokens", "dtype", "baselines")
_STORED = ("model", "layers", "norm", "precision", *_EXTRACTED)


@dataclass(frozen=True)
class CropOptions:
    """How images are cropped.

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


def _refuse(command: Callable[..., int], asked: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    parameters = inspect.signature(command).parameters
    for name in names:
        if asked[name] != parameters[name].default:
            raise UserError(f"--{name} has no effect {where}; leave it out")
