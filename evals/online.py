"""Probes trained with augmented images: the backbone runs in the loop, in one process or in several.

Under torchrun or accelerate each process takes its share of every batch, and the heads' gradients are averaged, so
that the result does not depend on how many processes there are. A checkpoint is written now and then, and when a signal
stops the training; the same command goes on from it.
"""

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.crops import CropEncoder, CroppedImages, Item
from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import Splits
from evals.errors import DatasetError
from evals.features import slug
from evals.options import CropOptions
from evals.probing import (
    ChooseOn,
    build_probe,
    check_stepwise,
    decisive_settings,
    head_task,
    parts_for,
    require_readable,
)
from evals.results import Result, ResultLog, make_result
from evals.saved_heads import holds_head_of, save_with_result
from heads.bank import HeadBank, shuffled_batches
from heads.processes import Processes
from heads.targets import TargetSpace
from heads.trained import TrainedProbe
from sail_encoder.backbones.registry import load_for
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.images.decoding import Array
from sail_encoder.images.resizing import Resize
from sail_encoder.io.fingerprints import digest

CHECKPOINT_EVERY = 500
"""Steps between two checkpoints."""

TEST_BATCH = 256


class OnlineRun:
    """Trains probes with the backbone in the loop; a context, which ends the claim on the folder.

    Args:
        out: Folder of the run.
        dataset: Samples and targets.
        features: Which features.
        device: Where the backbone runs.
        crops: How images are cropped.
        choose_on: Where learning rates are chosen.
        processes: Who trains.
    """

    def __init__(
        self,
        out: Path,
        dataset: LabelledImages,
        features: FeatureSpec,
        device: str,
        crops: CropOptions,
        choose_on: ChooseOn,
        processes: Processes,
    ) -> None:
        self.out, self.dataset, self.crops, self.choose_on, self.processes = out, dataset, crops, choose_on, processes
        self.title = f"{features.title}, online"
        self.backbone = load_for(features, processes.device(device))
        size = Resize((crops.side, crops.side))
        self.features = replace(features, size=size, weights=self.backbone.fingerprint(features.depth - 1))
        self.encode = CropEncoder(self.backbone, features, crops.side)
        self._unread: set[int] = set()
        self._open = ExitStack()
        self.log = self._open.enter_context(ResultLog(out)) if processes.rank == 0 else None
        self.known: dict[str, Result] = processes.gather(self.log.known if self.log else {})[0]

    def __enter__(self) -> "OnlineRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def run(self, name: str, options: Mapping[str, Any], splits: Splits, seed: int) -> Result:
        """Trains one probe and measures it, or gives the result of an earlier run whose head is still there.

        Raises:
            UserError: If the probe is not trained by gradient descent, or an unfinished training has other settings.
        """
        probe = check_stepwise(build_probe(name, options, head_task(self.dataset), seed, str(self.backbone.device)))
        parts = parts_for(splits, self.choose_on)
        made_of = self._made_of(probe, parts[0])
        rest = [self._samples(index) for index in parts[1:]]
        tested = [self.choose_on, self.crops.test_resize]
        key = digest([probe.kind, made_of, *rest, self.dataset.name, self.title, *tested])
        head = self.out / "heads" / slug(self.title) / f"{probe.kind}-seed{seed}"
        # The first process decides for all of them, since only it writes heads.
        kept = self.processes.gather(holds_head_of(head, key))[0]
        if key not in self.known or not kept:
            checkpoint = self.out / "online" / f"{probe.kind}-seed{seed}.pt"
            self.known[key] = self._fit(probe, parts, checkpoint, seed)
            if self.log:
                save_with_result(head, probe, self._source(probe), key)
                self.log.add(key, self.known[key])
                checkpoint.unlink(missing_ok=True)
        return self.known[key]

    def _made_of(self, probe: TrainedProbe, index: Array) -> dict[str, Any]:
        """All that decides a training, the same on every device."""
        return {
            **decisive_settings(probe),
            "weights": self.features.weights,
            "precision": str(self.backbone.dtype).removeprefix("torch."),
            "layers": list(self.features.layers),
            "norm": self.features.norm,
            "fuse": self.features.fuse,
            "pool": self.features.pool,
            "crop": self.crops.side,
            "training images": self._samples(index),
        }

    def _samples(self, index: Array) -> str:
        """Names samples and their targets."""
        return digest([[self.dataset.keys[row] for row in index], self.dataset.targets[index].tolist()])

    def _fit(self, probe: TrainedProbe, parts: tuple[Array, Array, Array], checkpoint: Path, seed: int) -> Result:
        started = time.perf_counter()
        self._unread = set()
        train, val, test = parts
        probe.targets_ = TargetSpace.of(self.dataset.targets[train], probe.task)
        bank = probe.make_bank(self.encode.dim(probe.takes), len(probe.recipe.learning_rates))
        self._train(probe, bank, train, checkpoint)
        outputs, rows = self._scores(probe, bank, val, "validation")
        probe.keep(bank, probe.qualities(outputs, probe.targets_.encode(self.dataset.targets[rows])))
        outputs, rows = self._scores(probe, bank, test, "test")
        scores = probe.targets_.restore(outputs[0])
        result = make_result(probe, self.title, seed, scores, self.dataset.targets[rows], started)
        return replace(result, left_out=len(set().union(*self.processes.gather(self._unread))))

    def _train(self, probe: TrainedProbe, bank: HeadBank, index: Array, checkpoint: Path) -> None:
        """Trains a bank, from the checkpoint if there is one; ends the process where a signal has stopped it."""
        settings = self._made_of(probe, index)
        trainer = probe.trainer(bank, len(index), checkpoint=checkpoint, settings=settings, processes=self.processes)
        trainer.resume()
        batches = partial(self._batches, probe, index, trainer.recipe.batch_size)
        status = trainer.run(batches, save_every=CHECKPOINT_EVERY, title=probe.kind)
        if status:
            raise SystemExit(status)
        trainer.finish()

    def _batches(
        self, probe: TrainedProbe, index: Array, batch_size: int, first: int, last: int
    ) -> Generator[tuple[Any, Tensor], None, None]:
        """Features and targets of this process's share of each batch."""
        encoded = torch.as_tensor(probe.targets_.encode(self.dataset.targets[index]), device=self.backbone.device)
        images = CroppedImages(self.dataset, self.crops.side, probe.seed, exif_rotate=self.features.exif_rotate)
        batches = shuffled_batches(len(index), batch_size, last, probe.seed)
        items = (self._items(index[batch.numpy()], step) for step, batch in islice(enumerate(batches), first, None))
        for patches, rows, unread in images.load(items, self.crops.workers):
            self._unread.update(unread)
            if patches is None:
                raise DatasetError(f"none of the {len(unread)} images of a batch can be read; replace them")
            # The index is sorted, so that a row of the data set is found in it.
            targets = encoded[np.searchsorted(index, rows.numpy())]
            yield self.encode(patches, probe.takes), targets

    def _items(self, rows: Array, step: int) -> list[Item]:
        return [(int(row), step) for row in rows[self.processes.rank :: self.processes.count]]

    @torch.no_grad()
    def _scores(self, probe: TrainedProbe, bank: HeadBank, index: Array, name: str) -> tuple[Array, Array]:
        """Scores float64 [heads, images, outputs] of the images that could be read, and their rows."""
        bank.eval()
        mine = index[self.processes.rank :: self.processes.count].tolist()
        batches = [[(row, 0) for row in mine[at : at + TEST_BATCH]] for at in range(0, len(mine), TEST_BATCH)]
        images = CroppedImages(self.dataset, self.crops.side, None, self.crops.test_resize, self.features.exif_rotate)
        scores, rows = [], []
        for patches, where, unread in images.load(batches, self.crops.workers):
            self._unread.update(unread)
            if patches is None:
                continue
            scores.append(_finite(bank(self.encode(patches, probe.takes))))
            rows += where.tolist()
        gathered = self.processes.gather((scores, rows))
        found = {row for _, part in gathered for row in part}
        require_readable(self.dataset, name, [row in found for row in index])
        everything = np.concatenate([one for part, _ in gathered for one in part], 1)
        order = np.array([row for _, part in gathered for row in part])
        ascending = order.argsort()
        return everything[:, ascending], order[ascending]

    def _source(self, probe: TrainedProbe) -> FeatureSpec:
        return replace(self.features, pool="none" if probe.takes == "grids" else self.features.pool)


def _finite(scores: Tensor) -> Array:
    """Scores as float64; those of a head that has diverged are 0."""
    return scores.nan_to_num(0, 0, 0).double().cpu().numpy()
