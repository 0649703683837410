"""A run of `sail segment train`: learning, with everything kept on the way, and the report at its end."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evals.segmentation.batches import Batch, Batches
from evals.segmentation.data import SegmentationData
from evals.segmentation.inference_options import inference_of
from evals.segmentation.report import write_report
from evals.segmentation.run_folder import CHECKPOINT, CURVES, LOG
from evals.segmentation.scoring import Gallery, score
from evals.segmentation.train_request import CountedPixels, TrainRequest
from heads.dense import IGNORE
from heads.dense.contract import DenseHead, OnePassHead
from heads.dense.registry import TrainedHead, save_dense_head
from heads.dense.segmenter import Segmenter
from heads.trainer import Trainer, read_log
from sail_encoder.io.files import replacing


class Run:
    """One run in its folder.

    Args:
        request: What was asked for.
        segmenter: Backbone and head.
        trained: The same head with its classes and windows.
        validation: What it is scored on.
    """

    def __init__(
        self, request: TrainRequest, segmenter: Segmenter, trained: TrainedHead, validation: SegmentationData
    ) -> None:
        self.request = request
        self.folder = request.folder
        self.segmenter = segmenter
        self.trained = trained
        self.validation = validation
        self.inference = inference_of(trained, segmenter.backbone.patch_size)

    def learn(self, batches: Batches, settings: Mapping[str, Any], images: int) -> int:
        """Trains the head, from the last checkpoint if there is one, and saves it.

        Args:
            batches: Where batches come from.
            settings: All that decides the head.
            images: How many training images there are; a head without gradients sees each once.

        Returns:
            0, or the exit status where a signal has stopped it.
        """
        head, recipe = self.segmenter.head, self.request.recipe
        if isinstance(head, OnePassHead):
            count = min(recipe.all_steps, math.ceil(images / recipe.batch_size))
            head.fit(((batch.maps, batch.labels) for batch in batches.between(0, count)), count)
        elif status := self._train(head, batches, settings):
            return status
        save_dense_head(self.folder, self.trained)
        return 0

    def _train(self, head: DenseHead, batches: Batches, settings: Mapping[str, Any]) -> int:
        request = self.request
        trainer = Trainer(
            head,
            request.recipe,
            lambda head, batch: batch_loss(head, batch, request.loss_over),
            checkpoint=self.folder / CHECKPOINT,
            log=self.folder / LOG,
            settings=settings,
        )
        trainer.resume()
        return trainer.run(
            batches.between,
            log_every=request.log_every,
            save_every=request.save_every,
            validate_every=request.validate_every,
            validate=self._validate,
        )

    def _validate(self) -> dict[str, Any]:
        scores = score(self.segmenter, self.inference, self.validation)
        return {"mIoU": scores.mean_iou, "mAcc": scores.mean_accuracy, "aAcc": scores.pixel_accuracy}

    def finish(self) -> str:
        """Scores the head, writes results, pictures and curves, and returns the table."""
        with Gallery(self.validation, self.folder, self.request.overlays) as keep:
            scores = score(self.segmenter, self.inference, self.validation, keep)
        self._draw_curves(scores.mean_iou)
        return write_report(self.folder, scores, self.trained, self.inference, len(self.validation))

    def _draw_curves(self, mean_iou: float) -> None:
        lines = read_log(self.folder / LOG)
        if not lines:
            return
        try:
            draw_curves([*lines, {"step": lines[-1]["step"], "mIoU": mean_iou}], self.folder / CURVES)
        except ImportError:
            print("no curves.png without matplotlib; pip install 'sail-encoder[plots]'", file=sys.stderr)


def batch_loss(head: DenseHead, batch: Batch, over: CountedPixels) -> Tensor:
    """The loss of a batch; as a mean over all pixels it is smaller, the fewer of them have a label."""
    loss = head.loss(batch.maps, batch.labels)
    return loss * batch.labels.ne(IGNORE).float().mean() if over == "all" else loss


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss, learning rate and mIoU over the steps.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names = [name for name in ("loss", "learning_rate", "mIoU") if any(name in line for line in lines)]
    figure = Figure((4 * len(names), 3), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 30 else None)
        axes.set(title=name.replace("_", " "), xlabel="step")
    with replacing(path) as unfinished:
        figure.savefig(unfinished)
