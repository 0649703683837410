"""Drawn scenes as a data set in the layout of ADE20K, for trying things where no real data is."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from evals.scenes import CLASSES, draw_scene
from evals.segmentation.data_source import CLASS_FILE
from sail_encoder.io.files import replacing

SCENES: dict[str, int | tuple[int, ...]] = {"scenes": 1, "scenes-several": (1, 2, 3, 4)}
"""What stands for drawn scenes in place of a folder of data, and how many things they show."""

SPLITS = {"training": range(100_000, 101_200), "validation": range(110_000, 110_200)}
"""Seeds of the scenes of each split; none that `sail-tiny` was trained on."""


def draw_scenes(folder: Path, name: str) -> None:
    """Draws the images that are missing, with masks in which 0 does not count and the classes start at 1.

    Args:
        folder: Where they go, in the layout of ADE20K.
        name: One of `SCENES`.
    """
    things = SCENES[name]
    missing = [
        (folder, split, seed)
        for split, seeds in SPLITS.items()
        for seed in seeds
        if not _mask(folder, split, seed).exists()
    ]
    for split in SPLITS:
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
    with replacing(folder / CLASS_FILE) as unfinished:
        unfinished.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    with ThreadPoolExecutor(os.cpu_count(), "draw") as pool:
        list(tqdm(pool.map(partial(_draw, things), missing), "drawing", len(missing), unit="scene", disable=None))


def _mask(folder: Path, split: str, seed: int) -> Path:
    return folder / "annotations" / split / f"scene_{seed}.png"


def _draw(things: int | tuple[int, ...], missing: tuple[Path, str, int]) -> None:
    """Draws one scene; the mask, which says that it is done, comes last."""
    folder, split, seed = missing
    scene = draw_scene(seed, things)
    mask = _mask(folder, split, seed)
    _save(Image.fromarray(scene.image), folder / "images" / split / mask.name)
    _save(Image.fromarray(scene.mask + 1), mask)


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as unfinished:
        image.save(unfinished)
