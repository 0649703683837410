"""Colors that stand for numbers and names, chosen for eyes of every kind.

The ramp is built in Oklab (Ottosson 2020, https://bottosson.github.io/posts/oklab), whose lightness is even to the eye:
equal steps of a score are equal steps of lightness, which also those see who tell no red from green, and a print in
gray keeps.
"""

from functools import cache

import numpy as np

from sail_encoder.images.decoding import Array

Color = tuple[int, int, int]

INK: Color = (34, 34, 34)
MUTED: Color = (110, 110, 110)
PAPER: Color = (255, 255, 255)

MARKS: tuple[Color, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (204, 121, 167),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
)
"""Colors of outlines that every kind of color vision distinguishes (Okabe & Ito 2008)."""

_LIGHTNESS = (0.28, 0.93)
_HUE = (280, 105)
"""Degrees: from indigo over blue and green to yellow."""
_CHROMA = (0.125, 0.085, 0.16)
"""Saturation at both ends and in the middle, where blue-green is the least saturated color that a screen shows."""


def colorize(scores: Array, low: float, high: float) -> Array:
    """Scores as colors, uint8 [..., 3], from dark indigo at `low` to bright yellow at `high` and beyond."""
    share = (scores - low) / max(high - low, 1e-12)
    colors = ramp()
    return np.asarray(colors[(share.clip(0, 1) * (len(colors) - 1)).round().astype(int)])


@cache
def ramp(steps: int = 256) -> Array:
    """Colors uint8 [steps, 3] of even steps in lightness."""
    places = np.linspace(0, 1, steps)
    lightness, hue = np.interp(places, (0, 1), _LIGHTNESS), np.radians(np.interp(places, (0, 1), _HUE))
    chroma = np.polyval(np.polyfit((0, 0.5, 1), _CHROMA, 2), places)
    linear = _linear_rgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue)).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def _linear_rgb(lightness: Array, a: Array, b: Array) -> Array:
    """Oklab as linear sRGB [..., 3], with the matrices of its publication."""
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        -1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return np.asarray(cones**3 @ to_rgb.T)
