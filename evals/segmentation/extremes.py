"""The images that a head segments worst and best: where to look first."""

from pathlib import Path

import numpy as np

from evals.report import write_csv
from evals.segmentation.data import SegmentationData
from evals.segmentation.predictions import Compared, save_comparisons
from evals.segmentation.run_folders import BEST, IMAGES, WORST
from evals.segmentation.scores import Scores
from heads.dense.inference import Inference, predict
from heads.dense.segmenter import Segmenter

ROWS = 4
"""Images of a picture at most."""

_SIDE = 300


def show_extremes(
    segmenter: Segmenter, inference: Inference, data: SegmentationData, scores: Scores, folder: Path, pictures: int
) -> None:
    """Writes images.csv, the mean IoU of each image from the lowest on, and draws the first and the last of them.

    Images of whose pixels none counts come last in the table, without a number, and are not drawn. Label maps of all
    images would not fit into memory, so those that are drawn are predicted again.

    Args:
        segmenter: The model.
        inference: How images were looked at.
        data: Images and masks.
        scores: Their scores.
        folder: Where `images.csv`, `worst.png` and `best.png` go.
        pictures: Images of each picture at most; with 0 none is drawn.
    """
    iou = np.array(scores.images)
    # NaN, where nothing counts, is sorted to the end.
    order = np.argsort(iou, kind="stable").tolist()
    rows = ((data.samples[n].name, "" if np.isnan(iou[n]) else f"{iou[n]:.6f}") for n in order)
    write_csv(folder / IMAGES, [("image", "mIoU"), *rows])
    order = order[: np.count_nonzero(~np.isnan(iou))]
    count = min(pictures, ROWS, len(order))
    if not count:
        return
    for name, numbers in ((WORST, order[:count]), (BEST, order[: -count - 1 : -1])):
        labels = [labels.cpu().numpy() for labels in predict(segmenter, inference, numbers, data.read_image)]
        compared: list[Compared] = [
            (f"{data.samples[n].name}, mIoU {100 * iou[n]:.1f}", data.read_image(n), data.read_labels(n), predicted)
            for n, predicted in zip(numbers, labels, strict=True)
        ]
        save_comparisons(compared, data.class_map.names, folder / name, _SIDE)
