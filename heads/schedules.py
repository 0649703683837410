"""Learning rates over the steps of a training, each as a share of its highest value.

The plain ones are a decay that begins when the warm-up has ended. Those of published trainings differ in where the
decay begins, at the first step under the warm-up or after it, and in whether a step sees the rate that was computed for
it or for the one before. Over a whole training that is up to a tenth of the sum of all rates.
"""

from collections.abc import Callable
from math import cos, pi
from typing import Literal

ScheduleName = Literal[
    "poly", "cosine", "constant", "trapezoid", "cosine_dinov3", "cosine_mae", "cosine_timm", "poly_mmseg"
]

WARMUP_START = 1e-6
"""Share of the learning rate at which mmsegmentation's and DINOv3's warm-ups start."""


def poly_mmseg(step: int, steps: int, warmup: int) -> float:
    """In a line to zero from the first step, under a linear warm-up: mmsegmentation up to 0.30, with power 1."""
    return _risen(step, warmup) * (1 - step / steps)


def cosine_dinov3(step: int, steps: int, warmup: int) -> float:
    """Half a cosine from the first step, in a line as long as it warms up: DINOv3's segmentation.

    The first two steps have the same rate, since the schedule moves on only after the second.
    """
    known = max(step - 1, 0)
    if known < warmup:
        return _risen(known, warmup) * (1 - known / steps)
    return _half_cosine((known + 1) / steps)


def cosine_timm(step: int, steps: int, warmup: int) -> float:
    """Half a cosine that counts the warm-up's steps too: timm's, moved on after each step as InternVL does.

    A step sees the rate of the one before, and the first one that of the warm-up's beginning, which is zero.
    """
    known = max(step - 1, 0)
    return known / warmup if known < warmup else _half_cosine(known / steps)


def cosine_mae(step: int, steps: int, warmup: int) -> float:
    """A warm-up from zero and then half a cosine, as in MAE's and efficient probing's code."""
    return step / warmup if step < warmup else _half_cosine((step - warmup) / max(1, steps - warmup))


def trapezoid(step: int, steps: int, warmup: int) -> float:
    """A warm-up, the highest rate, and a line towards zero over the last two fifths, which ends at a hundredth."""
    return min((step + 1) / max(1, warmup), 1.0, max(0.01, (steps - step) / (0.4 * steps)))


WHOLE: dict[str, Callable[[int, int, int], float]] = {
    function.__name__: function for function in (cosine_dinov3, cosine_mae, cosine_timm, poly_mmseg, trapezoid)
}
"""Schedules with a warm-up of their own: (step, steps in all, steps of the warm-up) -> share of the highest rate."""


def _risen(step: int, warmup: int) -> float:
    return 1 - (1 - WARMUP_START) * (1 - step / warmup) if step < warmup else 1.0


def _half_cosine(gone: float) -> float:
    return (1 + cos(pi * gone)) / 2


DECAYS: dict[str, Callable[[float], float]] = {
    "poly": lambda gone: 1 - gone,
    "cosine": _half_cosine,
    "constant": lambda gone: 1.0,
}
"""Schedules after any warm-up: share of the steps after it that are gone -> share of the highest rate."""
