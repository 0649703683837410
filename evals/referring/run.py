"""One training of a Pixel-SAIL in its folder, and its scores."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from evals.referring.batches import Batch, ReferringBatches
from evals.referring.data import VAL_SPLIT, ReferringData
from evals.referring.evaluation import score_splits, write_report
from evals.referring.options import ReferringOptions, recipe_of
from evals.referring.scores import score_expressions
from evals.segmentation.options import TrainOptions
from evals.segmentation.run_folders import CHECKPOINT, LOG
from evals.segmentation.training import save_curves
from heads.referring import add_adapters, build_pixel_sail, compute_activations_twice, save_pixel_sail
from heads.trainer import Trainer
from sail_encoder.chat.conversation import Chat
from sail_encoder.io.devices import choose_device, choose_dtype
from sail_encoder.io.runs import read_run


class ReferringRun:
    """One run in its folder; the model at its beginning is a function of the seed.

    Weights are float32 while they are trained, and computations in the precision asked for, in which the model is saved
    in the end.

    Args:
        options: What was asked for.
        own: The options of this head.
        training: What it learns from.
        validation: What it is scored on.
    """

    def __init__(
        self, options: TrainOptions, own: ReferringOptions, training: ReferringData, validation: ReferringData
    ) -> None:
        self.options, self.own, self.validation = options, own, validation
        self.device = choose_device(options.device)
        self.dtype = choose_dtype(options.precision, self.device)
        torch.manual_seed(options.seed)
        self.model, self.processor = build_pixel_sail(options.model, options.max_tokens, **own.config_fields)
        self.adapters = add_adapters(self.model, own.lora) if own.lora else None
        self.model.to(self.device)
        if own.gradient_checkpointing:
            compute_activations_twice(self.model)
        self.batches = ReferringBatches(training, self.processor, options.batch_size, own.expressions, options.seed)

    def learn(self, settings: Mapping[str, Any]) -> int:
        """Trains the model, from the last checkpoint if there is one, and saves it.

        Args:
            settings: All that decides the weights.

        Returns:
            0, or the exit status where a signal has stopped it.
        """
        options = self.options
        trainer = Trainer(
            self.model,
            recipe_of(options, self.own),
            self._loss,
            checkpoint=options.folder / CHECKPOINT,
            log=options.folder / LOG,
            settings=settings,
        )
        trainer.resume()
        status = trainer.run(
            self.batches.between,
            log_every=options.log_every,
            save_every=options.save_every,
            validate_every=options.validate_every,
            validate=self._validate,
        )
        if not status:
            self.model = self.adapters.merge_and_unload() if self.adapters else self.model
            self.model.eval().to(self.dtype)
            save_pixel_sail(options.folder, self.model, self.processor)
        return status

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: _to_device(value, self.device) for name, value in batch.items()}
        with self._precision():
            loss: Tensor = model(**inputs).loss
        return loss

    def _precision(self) -> AbstractContextManager[Any]:
        is_full = self.dtype == torch.float32
        return nullcontext() if is_full else torch.autocast(self.device.type, self.dtype)

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        self.model.eval()
        with self._precision():
            scores = score_expressions(self.chat, self.validation, VAL_SPLIT)
        return {name: score for name, score in scores[VAL_SPLIT].as_dict().items() if name in ("cIoU", "gIoU")}

    @property
    def chat(self) -> Chat:
        """The model to talk to."""
        return Chat(self.model, self.processor)

    def finish(self) -> str:
        """Scores the model as it is saved, writes results and curves, and returns the table."""
        folder = self.options.folder
        scores = score_splits(self.chat, {VAL_SPLIT: self.validation})
        save_curves(folder, {"cIoU": scores[VAL_SPLIT]["cIoU"]})
        run = read_run(folder)
        training = run["settings"] if run else {}
        return write_report(folder, scores, self.options.data, str(folder), training, self.options.latex)


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to_device(one, device) for one in value]
    return value.to(device, non_blocking=True)
