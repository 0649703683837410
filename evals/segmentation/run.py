"""A run of `sail segment train`: learning, with everything kept on the way, and the report at its end."""

import math
import sys
from pathlib import Path
from threading import Event
from typing import Any

from evals.segmentation.batches import Batches
from evals.segmentation.data import SegmentationData
from evals.segmentation.history import draw_curves, read_history
from evals.segmentation.inference_options import inference_of
from evals.segmentation.optimization import Optimization
from evals.segmentation.report import write_report
from evals.segmentation.scoring import Gallery, score
from evals.segmentation.training import Pace, Training
from heads.dense.contract import OnePassHead
from heads.dense.registry import TrainedHead, save_dense_head
from heads.dense.segmenter import Segmenter
from sail_encoder.io.signals import Interrupt


class Run:
    """One run in its folder.

    Args:
        folder: Where everything is kept.
        segmenter: Backbone and head.
        trained: The same head with its classes and windows.
        validation: What it is scored on.
    """

    def __init__(self, folder: Path, segmenter: Segmenter, trained: TrainedHead, validation: SegmentationData) -> None:
        self.folder = folder
        self.segmenter = segmenter
        self.trained = trained
        self.validation = validation
        self.inference = inference_of(trained, segmenter.backbone.patch_size)

    def learn(self, batches: Batches, optimization: Optimization, pace: Pace, images: int) -> int:
        """Trains the head, from the last checkpoint if there is one, and saves it.

        Args:
            batches: Where batches come from.
            optimization: How the head is optimized.
            pace: What is done now and then.
            images: How many training images there are; a head without gradients sees each once.

        Returns:
            0, or the exit status where a signal has stopped it.
        """
        head = self.segmenter.head
        if isinstance(head, OnePassHead):
            count = min(optimization.steps, math.ceil(images / optimization.batch_size))
            head.fit(((batch.maps, batch.labels) for batch in batches.between(0, count)), count)
        else:
            training = Training(head, batches, optimization, self.folder)
            training.resume()
            stop = Event()
            with Interrupt(stop.set) as interrupt:
                training.run(pace, stop, self._validate)
            if interrupt.status and not training.finished:
                print(f"stopped at step {training.step:,}; the same command goes on", file=sys.stderr)
                return interrupt.status
        save_dense_head(self.folder, self.trained)
        return 0

    def _validate(self) -> dict[str, Any]:
        scores = score(self.segmenter, self.inference, self.validation)
        return {"mIoU": scores.mean_iou, "mAcc": scores.mean_accuracy, "aAcc": scores.pixel_accuracy}

    def finish(self, overlays: int) -> str:
        """Scores the head, writes results, pictures and curves, and returns the table."""
        with Gallery(self.validation, self.folder, overlays) as keep:
            scores = score(self.segmenter, self.inference, self.validation, keep)
        self._draw_curves(scores.mean_iou)
        return write_report(self.folder, scores, self.trained, self.inference, len(self.validation))

    def _draw_curves(self, mean_iou: float) -> None:
        lines = read_history(self.folder)
        if not lines:
            return
        try:
            draw_curves([*lines, {"step": lines[-1]["step"], "mIoU": mean_iou}], self.folder)
        except ImportError:
            print("no curves.png without matplotlib; pip install 'sail-encoder[plots]'", file=sys.stderr)
