"""Contract of all probes, on which `sail probe`, the registry and other packages rely."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor
from typing_extensions import Self

from heads.contract import HeadError, SavedHead, load_head, require_same_features, save_head
from heads.settings import check_at_least_zero
from heads.targets import TASKS, TargetSpace, Task
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.devices import choose_device

Array = np.ndarray[Any, Any]
Validation = tuple[Any, Any] | None
"""Features and targets on which hyper-parameters are chosen; without them a share of the training set is held out."""


@dataclass(frozen=True)
class Candidate:
    """One value of a hyper-parameter, and how good it was.

    Attributes:
        name: Such as `C`, `alpha`, `k` or `learning_rate`.
        value: What was tried.
        quality: Accuracy, mean average precision or R² on the validation set; None if there was nothing to choose.
    """

    name: str
    value: float
    quality: float | None = None


OF_THE_MACHINE = ("device", "working_memory")
"""Settings that say where to compute; a saved head does not keep them, so that it loads on any machine."""


class Probe(ABC):
    """Turns features of an image into scores.

    A probe is built from settings, among them `task`, `seed` and `device`, learns with `fit`, and can be saved and
    loaded. A package adds one of its own by the entry point group `sail_encoder.heads`.

    Attributes:
        kind: Its name in the registry.
        takes: `vectors`, a matrix [n, C] with a row per image; or `grids`, a sequence of [nh, nw, C], one per image.
        task: `classification` or `regression`.
        seed: What chance depends on.
        device: Where it computes; `auto` takes a GPU where there is one.
        targets_: What it was fitted on.
        path_: The values of its hyper-parameter that were tried.
        chosen_: The value that it was fitted with in the end.
    """

    kind: ClassVar[str]
    takes: ClassVar[Literal["vectors", "grids"]] = "vectors"
    threshold: ClassVar[float] = 0.0
    task: Task
    seed: int
    device: str
    targets_: TargetSpace
    path_: list[Candidate]
    chosen_: float

    def check(self) -> None:
        """Finds settings that cannot be, before there are features.

        Raises:
            UserError: If there is one; the message names it.
        """
        if self.task not in TASKS:
            raise HeadError(f"task '{self.task}' is unknown; use {' or '.join(TASKS)}")
        check_at_least_zero("seed", self.seed, whole=True)
        choose_device(self.device)

    @abstractmethod
    def fit(self, X: Any, y: Any, validation: Validation = None) -> Self:
        """Learns.

        Args:
            X: Features of images, see `takes`.
            y: Their targets, see `heads.targets.TargetSpace.of`.
            validation: Features and targets to choose hyper-parameters on.

        Raises:
            HeadError: If nothing can be learned from these.
        """

    @abstractmethod
    def scores(self, X: Any) -> Array:
        """Scores [n, outputs], one column per class, label or number; higher means more likely."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The arguments from which an equal probe can be built, `OF_THE_MACHINE` among them."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Learned tensors by name."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what another probe of the same settings has learned."""

    def decide(self, scores: Array) -> Array:
        """Predictions from `scores`, in the form of the targets."""
        return self.targets_.decide(scores, self.threshold)

    def predict(self, X: Any) -> Array:
        """Predictions [n], or [n, outputs], in the form of the targets."""
        return self.decide(self.scores(X))

    @property
    def classes_(self) -> Array:
        """Names of the classes, sorted, or numbers of the labels; a regression has none."""
        if self.targets_.kind == "regression":
            raise AttributeError("a regression has no classes_")
        return self.targets_.classes

    def score(self, X: Any, y: Any) -> float:
        """Accuracy, or R² for regression, as scikit-learn's searches use it."""
        metric = r2_score if self.task == "regression" else accuracy_score
        return float(metric(y, self.predict(X)))

    def save(self, folder: str | Path, source: FeatureSpec | None = None) -> None:
        """Writes head.safetensors and head.json.

        Args:
            folder: Where to; made if need be.
            source: Which features it was fitted on, so that it refuses others.

        Raises:
            HeadError: If it is not fitted yet.
        """
        if not hasattr(self, "chosen_"):
            raise HeadError(f"this {self.kind} probe is not fitted yet; call fit before save")
        fitted = {
            "targets": self.targets_.to_json(),
            "path": [asdict(candidate) for candidate in self.path_],
            "chosen": self.chosen_,
        }
        settings = {name: value for name, value in self.settings().items() if name not in OF_THE_MACHINE}
        save_head(folder, SavedHead(self.kind, _as_json(settings), source, self.tensors(), fitted))

    @classmethod
    def load(cls, folder: str | Path, source: FeatureSpec | None = None, device: str = "auto") -> Self:
        """Reads what `save` wrote.

        Args:
            folder: Where it is.
            source: The features that it is to be used on.
            device: Where to compute, wherever it was fitted; `auto` takes a GPU where there is one.

        Raises:
            HeadError: If there is no such probe in the folder, or it was fitted on features of another source, or its
                settings or weights are not those of this version.
        """
        return cls.from_saved(load_head(folder), source, device)

    @classmethod
    def from_saved(cls, saved: SavedHead, source: FeatureSpec | None = None, device: str = "auto") -> Self:
        """Builds the probe that was saved; see `load`."""
        if saved.kind != cls.kind:
            raise HeadError(
                f"the saved head is of kind '{saved.kind}', not '{cls.kind}'; use heads.registry.load_probe"
            )
        if source is not None and saved.source is not None:
            require_same_features(saved.source, source)
        settings = {name: value for name, value in saved.settings.items() if name not in OF_THE_MACHINE}
        try:
            probe = cls(**{**settings, "device": device})
            probe.check()
            probe.targets_ = TargetSpace.from_json(saved.fitted["targets"])
            probe.path_ = [Candidate(**fields) for fields in saved.fitted["path"]]
            probe.chosen_ = saved.fitted["chosen"]
            probe.restore(saved.tensors)
        except HeadError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise HeadError(f"the saved {cls.kind} head is of another version ({reason}); fit it again") from None
        return probe


def require_a_target_each(X: Any, y: Any) -> None:
    """Makes sure that there are as many targets as features.

    Raises:
        HeadError: If not.
    """
    if len(X) != len(y):
        raise HeadError(f"{len(X)} rows of features, but {len(y)} targets; give one target a row")


def as_array(features: Any) -> Array:
    """Features as an array: tensors come to the CPU, bfloat16 becomes float32, all else stays what it is."""
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        return (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    return features


def as_tensor(features: Any) -> Tensor:
    """Features as a tensor that shares their memory and is only read, so PyTorch need not warn of a memory map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(features)


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with arrays and tuples as lists, and NumPy's numbers as Python's."""
    plain = {}
    for name, value in settings.items():
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        plain[name] = [_as_json({"": item})[""] for item in value] if isinstance(value, (list, tuple)) else value
    return plain
