"""Scoring a segmenter on a data set, at the original size of the labels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evals.segmentation.data import SegmentationData
from evals.segmentation.pictures import save_comparison, save_labels
from evals.segmentation.run_folder import LABELS, OVERLAYS, PICTURES
from evals.segmentation.scores import ConfusionMatrix, Scores
from heads.dense.inference import Inference, predict
from heads.dense.segmenter import Segmenter
from sail_encoder.images.decoding import Array
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.threads import Behind, map_ahead

_READERS = min(8, os.cpu_count() or 1)
_WAITING = 16
"""Label maps that wait to be written."""

Keep = Callable[[int, Tensor], None]
"""Takes the number of an image and its label map."""


def score(segmenter: Segmenter, inference: Inference, data: SegmentationData, keep: Keep | None = None) -> Scores:
    """Predicts every image and compares with its mask.

    Args:
        segmenter: The model.
        inference: How to look at an image.
        data: Images and masks.
        keep: Called for each image, in order.
    """
    matrix = ConfusionMatrix(segmenter.num_classes, segmenter.backbone.device)
    numbers = range(len(data))
    with ThreadPoolExecutor(_READERS, "labels") as pool:
        predictions = predict(segmenter, inference, numbers, data.read_image)
        masks = map_ahead(data.read_labels, numbers, pool, 2 * _READERS)
        progress = tqdm(zip(predictions, masks, strict=True), "scoring", len(data), unit="img", disable=None)
        for number, (predicted, labels) in enumerate(progress):
            matrix.add(predicted, torch.from_numpy(labels).to(predicted.device, non_blocking=True))
            if keep is not None:
                keep(number, predicted)
    return matrix.scores()


class Gallery:
    """Keeps label maps as files: of some images a comparison with the mask, of all of them index PNGs if wanted.

    Files are written in a thread behind the model; `with` waits for them.

    Args:
        data: Images and masks.
        folder: Where `overlays/` and `labels/` go; nothing is written where it is None.
        overlays: How many images to compare, spread evenly over the data set.
        label_maps: Whether to write an index PNG of every image.
    """

    def __init__(self, data: SegmentationData, folder: Path | None, overlays: int, label_maps: bool = False) -> None:
        self.data = data
        self.folder = folder
        self.chosen = set(np.linspace(0, len(data) - 1, min(overlays, len(data))).round().astype(int).tolist())
        self.label_maps = label_maps

    def __enter__(self) -> Keep | None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.written = LineLog(self.folder / PICTURES)
        self.pool = ThreadPoolExecutor(1, "write")
        self.behind = Behind(self.pool, _WAITING)
        return None if self.folder is None else partial(self._keep, self.folder)

    def _keep(self, folder: Path, number: int, predicted: Tensor) -> None:
        if self.label_maps or number in self.chosen:
            self.behind.submit(self._write, folder, number, predicted.cpu().numpy())

    def _write(self, folder: Path, number: int, predicted: Array) -> None:
        name, names = self.data.samples[number].name, self.data.class_map.names
        if self.label_maps:
            self.written.append(f"{LABELS}/{name}.png")
            save_labels(predicted, names, folder / LABELS / f"{name}.png")
        if number in self.chosen:
            image, labels = self.data.read_image(number), self.data.read_labels(number)
            self.written.append(f"{OVERLAYS}/{name}.png")
            save_comparison(image, labels, predicted, names, folder / OVERLAYS / f"{name}.png")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.behind.drain()
        finally:
            self.pool.shutdown(cancel_futures=True)
            if self.folder is not None:
                self.written.close()
