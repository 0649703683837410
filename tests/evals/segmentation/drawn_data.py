"""A small data set that is easy to learn."""

import numpy as np
from PIL import Image

COLORS = np.array([(20, 20, 20), (220, 40, 40), (40, 200, 60), (60, 80, 230)], np.uint8)
"""The color of each class; the data is easy on purpose."""


def draw(height, width, rng):
    """An image of colored rectangles, and the class of each pixel."""
    labels = np.zeros((height, width), np.uint8)
    for _ in range(5):
        top, left = rng.integers(0, height - 14), rng.integers(0, width - 14)
        labels[top : top + 35, left : left + 35] = rng.integers(1, len(COLORS))
    noise = rng.normal(0, 6, (height, width, 3))
    return (COLORS[labels] + noise).clip(0, 255).astype(np.uint8), labels


def save_pair(image, labels, image_path, mask_path):
    for array, path in ((image, image_path), (labels, mask_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_data(root, train=8, val=4, sides=(50, 100), multiple=1):
    """A data set in the plain layout, with sides that are multiples of a number; some pixels do not count."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            image, labels = draw(*(rng.integers(*sides, 2) // multiple * multiple), rng)
            labels[:2] = 255
            save_pair(image, labels, root / f"images/{split}/{index}.png", root / f"masks/{split}/{index}.png")
    return root
