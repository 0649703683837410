"""Base of the probes trained by gradient descent: several learning rates at once, the best chosen on validation."""

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from heads.bank import HeadBank, LabelLoss, loss_of, shuffled_batches
from heads.contract import HeadError, SavedHead
from heads.norm import BatchNorm, check_batch_norm
from heads.probe import Array, Candidate, Probe, Validation, require_a_target_each
from heads.recipe import OptimizerName, Recipe
from heads.schedules import ScheduleName
from heads.settings import as_values, check_one_of, check_share, rename_settings
from heads.targets import TargetSpace, Task, hold_out
from heads.trainer import Trainer
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.devices import choose_device

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""What DINOv2 and DINOv3 compare."""


class FeatureBatches(Protocol):
    """Features of images, a batch at a time.

    Attributes:
        dim: C.
    """

    dim: int

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, index: Tensor) -> Any:
        """Features of some images, as the bank takes them."""


PARAMETER = "learning_rate"
"""Name of what is chosen."""


@dataclass(eq=False)
class TrainedProbe(Probe):
    """A probe trained by gradient descent.

    Args:
        learning_rates: Learning rate, or several to choose from.
        epochs: Passes over the training set.
        least_steps: How many steps at least: small sets are passed more often.
        steps: How many steps in place of both, or None.
        batch_size: Images in a batch, of all processes together.
        base_batch_size: Batch that the learning rates are meant for; they grow with the batch.
        optimizer: `sgd`, `adamw` or `lars`.
        momentum: Of sgd and lars.
        nesterov: Whether momentum looks ahead, of sgd and lars.
        weight_decay: Of weights, not of biases.
        schedule: How learning rates fall after the warm-up, see `heads.recipe.Recipe`.
        warmup: Share of the steps over which learning rates rise from 0, or from 1 on the number of these steps.
        clip: Largest norm of the gradient of a head; 0 leaves gradients as they are.
        label_smoothing: Share of the target of a class that all classes get in equal parts.
        label_loss: Whether the losses of the labels of an image are averaged (`mean`, as DINOv3 has it) or added up
            (`sum`), with which a learning rate means the same for any number of labels.
        ema: Decay of the moving average of the weights that is used in the end; 0 takes the last weights.
        batch_norm: Whether features go through a batch norm first: true for one without weights, `affine` for one
            with a learned scale and shift of each feature.
        task: `classification` (one class, or several labels) or `regression`.
        seed: First weights, order of the samples, and which are held out where there is no validation set.
        device: Where to compute; `auto` takes a GPU where there is one.
    """

    learning_rates: float | Sequence[float] = LEARNING_RATES
    epochs: float = 10
    least_steps: int = 1000
    steps: int | None = None
    batch_size: int = 128
    base_batch_size: int = 256
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: ScheduleName = "cosine"
    warmup: float = 0.0
    clip: float = 0.0
    label_smoothing: float = 0.0
    label_loss: LabelLoss = "mean"
    ema: float = 0.0
    batch_norm: BatchNorm = False
    task: Task = "classification"
    seed: int = 0
    device: str = "auto"

    held_out = 0.1

    def settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @abstractmethod
    def read(self, X: Any) -> FeatureBatches:
        """Reads features, for the device that the probe computes on.

        Raises:
            HeadError: If they are not what this probe takes.
        """

    @abstractmethod
    def build(self, dim: int, outputs: int, count: int) -> HeadBank:
        """A bank of equal heads, drawn from torch's random numbers."""

    def check(self) -> None:
        super().check()
        check_batch_norm(self.batch_norm)
        check_share("label_smoothing", self.label_smoothing)
        check_one_of("label_loss", self.label_loss, get_args(LabelLoss))
        _ = self.recipe  # which checks itself

    @property
    def recipe(self) -> Recipe:
        """Recipe of its training.

        Raises:
            HeadError: If a setting is not possible.
        """
        rates = tuple(as_values("learning_rates", self.learning_rates))
        shared = {field.name for field in fields(Recipe)} & self.settings().keys() - {"learning_rates"}
        return Recipe(rates, decay_norms=False, **{name: getattr(self, name) for name in shared})

    def fit(self, X: Any, y: Any, validation: Validation = None) -> Self:
        self.check()
        samples = self._samples(X, y)
        self.targets_ = TargetSpace.of(y, self.task)
        encoded, index = self.targets_.encode(y), np.arange(len(samples))
        if validation is None and len(self.recipe.learning_rates) == 1:
            self.keep(self._train(samples, encoded, index), [None])
            return self
        if validation is None:
            index, held = hold_out(encoded, self.targets_.kind, self.held_out, self.seed)
            judges, wanted = samples, encoded[held]
        else:
            judges, wanted = self._samples(*validation), self.targets_.encode(validation[1])
            _require_equal(judges.dim, samples.dim)
            held = np.arange(len(judges))
        bank = self._train(samples, encoded, index)
        self.keep(bank, self.qualities(_scores(bank, judges, held), wanted))
        return self

    def _samples(self, X: Any, y: Any) -> FeatureBatches:
        if not len(y):
            raise HeadError("the set is empty; give samples, or None in place of a validation set to hold some out")
        require_a_target_each(X, y)
        return self.read(X)

    @property
    def torch_device(self) -> torch.device:
        """The device that it computes on."""
        return choose_device(self.device)

    def _train(self, samples: FeatureBatches, encoded: Array, index: Array) -> HeadBank:
        bank = self.make_bank(samples.dim, len(self.recipe.learning_rates))
        trainer = self.trainer(bank, len(index))
        targets, places = torch.as_tensor(encoded, device=self.torch_device), torch.as_tensor(index)

        def batches(first: int, last: int) -> Generator[tuple[Any, Tensor], None, None]:
            for chosen in shuffled_batches(len(index), trainer.recipe.batch_size, last, self.seed):
                where = places[chosen]
                yield samples.batch(where), targets[where.to(targets.device)]

        trainer.run(batches, title=self.kind)
        trainer.finish()
        return bank

    def trainer(self, bank: HeadBank, samples: int, **keeping: Any) -> Trainer:
        """Trainer of a bank by features and encoded targets of a batch.

        Args:
            bank: The heads.
            samples: How many there are to train on.
            keeping: What is kept of the training, see `heads.trainer.Trainer`.
        """
        return Trainer(bank, self.recipe.for_samples(samples), self.loss, heads=bank.head_parameters(), **keeping)

    def loss(self, bank: HeadBank, batch: tuple[Any, Tensor]) -> Tensor:
        """The sum of the heads' losses, which gives each head the gradient that it would have alone."""
        features, targets = batch
        return loss_of(bank(features), targets, self.targets_.kind, self.label_smoothing, self.label_loss).sum()

    def make_bank(self, dim: int, count: int) -> HeadBank:
        """A bank of `count` equal heads on the device, the same for every call with the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build(dim, self.targets_.width, count).to(self.torch_device)

    def qualities(self, outputs: Array, encoded: Array) -> list[float]:
        """Quality of each head of a bank.

        Args:
            outputs: Its scores of the validation set [heads, images, outputs].
            encoded: The targets of these images.
        """
        return [self.targets_.quality(self.targets_.restore(one), encoded) for one in outputs]

    def keep(self, bank: HeadBank, qualities: Sequence[float | None]) -> None:
        """Keeps the head of the best learning rate, the first of several."""
        pairs = zip(self.recipe.learning_rates, qualities, strict=True)
        self.path_ = [Candidate(PARAMETER, *pair) for pair in pairs]
        best = int(np.argmax([candidate.quality or 0.0 for candidate in self.path_]))
        self.chosen_, self.bank_ = self.path_[best].value, bank
        bank.keep(best)

    def scores(self, X: Any) -> Array:
        if not hasattr(self, "bank_"):
            raise HeadError(f"this {self.kind} probe is not fitted yet; call fit first")
        samples = self.read(X)
        _require_equal(samples.dim, self.dim_of(self.bank_.state_dict()))
        return self.targets_.restore(_scores(self.bank_, samples, np.arange(len(samples)))[0])

    @classmethod
    def from_saved(cls, saved: SavedHead, source: FeatureSpec | None = None, device: str = "auto") -> Self:
        settings = rename_settings(saved.settings, f"the saved {saved.kind} head")
        probe = super().from_saved(replace(saved, settings=settings), source, device)
        probe.path_ = [replace(candidate, name=PARAMETER) for candidate in probe.path_]
        return probe

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self.bank_.state_dict().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.bank_ = self.make_bank(self.dim_of(tensors), 1).eval()
        try:
            self.bank_.load_state_dict(tensors)
        except RuntimeError:
            raise HeadError(
                f"the weights of the saved {self.kind} head do not fit its settings; fit it again"
            ) from None

    @abstractmethod
    def dim_of(self, tensors: Mapping[str, Tensor]) -> int:
        """Channels, from the tensors of a bank."""


def _require_equal(dim: int, fitted: int) -> None:
    if dim != fitted:
        raise HeadError(f"features have {dim} channels, those of training {fitted}; take both from the same layers")


@torch.no_grad()
def _scores(bank: HeadBank, samples: FeatureBatches, index: Array) -> Array:
    """Scores float64 [heads, images, outputs]; those of a head that has diverged are 0."""
    parts = [bank(samples.batch(chosen)) for chosen in _in_order(index)]
    return torch.cat(parts, 1).nan_to_num(0, 0, 0).double().cpu().numpy()


def _in_order(index: Array, size: int = 256) -> Iterator[Tensor]:
    yield from torch.as_tensor(index).split(size)
