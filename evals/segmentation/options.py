"""What `sail segment train` was asked for, as one value that the rest of it reads."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evals.segmentation.data import SegmentationData
from evals.segmentation.inference import HIGHEST_SEED, check_folder, check_range
from evals.segmentation.pairs import LayoutName
from evals.segmentation.sources import SCENES
from heads.recipe import OptimizerName, Recipe
from heads.schedules import WARMUP_START, ScheduleName
from sail_encoder.io.devices import check_device, choose_device, choose_dtype
from sail_encoder.io.errors import UserError, require_positive
from sail_encoder.io.fingerprints import digest

CountedPixels = Literal["labelled", "all"]
"""Pixels over which the loss of a batch is a mean."""

_HOW_IT_RUNS = {
    *("out", "device", "cache", "cache_gb", "check", "overwrite", "weights"),
    *("validate_every", "save_every", "log_every", "overlays"),
}
"""Options that do not change the head that comes out, and the file of weights, of which the fingerprint tells more."""


@dataclass(frozen=True)
class TrainRequest:
    """The options of `sail segment train`, whose docstring says what each means.

    Raises:
        UserError: If one of them is not possible, as far as the options by themselves tell it.
    """

    data: str
    out: str
    model: str
    weights: str | None
    random_weights: bool
    max_tiles: int | None
    msac: bool
    project: bool
    head: str
    head_options: dict[str, Any] | None
    layers: str
    norm: bool
    mode: Literal["online", "cached"]
    layout: LayoutName
    class_map: str | None
    reduce_zero_label: bool
    ignore_label: int
    resize: str
    max_tokens: int | None
    crop: str
    jitter: tuple[float, float] | None
    flip: bool
    distort: bool | None
    colors: Literal["mmseg", "dinov3"] | None
    fit: Literal["resize", "pad"]
    window: str | None
    stride: int | None
    steps: int
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float
    schedule: ScheduleName
    warmup: int
    decay_norms: bool
    loss_over: CountedPixels
    cache: str | None
    cache_gb: float
    validate_every: int
    save_every: int
    log_every: int
    overlays: int
    seed: int
    device: str
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    check: bool
    overwrite: bool

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, HIGHEST_SEED)
        check_range("overlays", self.overlays, 0)
        for name in ("validate_every", "save_every", "log_every"):
            check_range(name, getattr(self, name), 0)
        for name in ("steps", "batch_size"):
            check_range(name, getattr(self, name), 1)
        if not 0 <= self.warmup < self.steps:
            raise UserError(f"--warmup cannot be {self.warmup}; allowed is 0 to {self.steps - 1}, below --steps")
        require_positive("learning_rate", self.learning_rate)
        if self.weight_decay < 0:
            raise UserError(f"--weight_decay cannot be {self.weight_decay}; allowed is 0 or more")
        check_device(self.device)
        check_folder("out", self.out)
        check_folder("cache", self.cache)

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.out)

    @property
    def recipe(self) -> Recipe:
        """How the head is trained; the warm-up is mmsegmentation's."""
        return Recipe(
            (self.learning_rate,),
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            decay_norms=self.decay_norms,
            schedule=self.schedule,
            warmup=self.warmup,
            warmup_start=WARMUP_START,
        )

    def decisive(self, training_data: SegmentationData) -> dict[str, Any]:
        """All that decides the head that comes out, but for the pixels and the weights of the backbone.

        A class map counts by what it says, not by the name of its file.
        """
        dtype = choose_dtype(self.precision, choose_device(self.device))
        ids = sorted(training_data.class_map.ids.items())
        names = [sample.name for sample in training_data.samples]
        return {
            **{name: value for name, value in asdict(self).items() if name not in _HOW_IT_RUNS},
            "data": self.data if self.data in SCENES else os.path.abspath(self.data),
            "precision": str(dtype).removeprefix("torch."),
            "class_map": digest(ids, 12),
            "training_images": f"{len(names)} named {digest(names, 12)}",
            "classes": training_data.class_map.names,
        }
