"""What `sail segment train` was asked for, as one value that the rest of it reads."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evals.segmentation.data import SegmentationData
from evals.segmentation.layouts import LayoutName
from evals.segmentation.optimization import Optimization, OptimizerName, ScheduleName
from evals.segmentation.option_checks import HIGHEST_SEED, check_folder, check_range
from evals.segmentation.scene_data import SCENES
from sail_encoder.io.devices import check_device, choose_device, choose_dtype
from sail_encoder.io.digests import digest

_HOW_IT_RUNS = {
    *("out", "device", "cache", "cache_gb", "check", "overwrite"),
    *("validate_every", "save_every", "log_every", "overlays"),
}
"""Options that do not change the head that comes out."""


@dataclass(frozen=True)
class TrainRequest:
    """The options of `sail segment train`, whose docstring says what each means.

    Raises:
        UserError: If one of them is not possible, as far as the options by themselves tell it.
    """

    data: str
    out: str
    model: str
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
    window: str | None
    stride: int | None
    steps: int
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float
    schedule: ScheduleName
    warmup: int
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
        check_device(self.device)
        check_folder("out", self.out)
        check_folder("cache", self.cache)

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return Path(self.out)

    @property
    def optimization(self) -> Optimization:
        """How the head is optimized."""
        return Optimization(
            self.steps,
            self.batch_size,
            self.optimizer,
            self.learning_rate,
            self.weight_decay,
            self.schedule,
            self.warmup,
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
