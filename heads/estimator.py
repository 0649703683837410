"""Base of the probes over scikit-learn's estimators: one hyper-parameter, chosen on validation, then a refit."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import ClassifierTags, RegressorTags, Tags
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from typing_extensions import Self

from heads.contract import HeadError
from heads.probe import Array, Candidate, Probe, Validation, as_array, require_a_target_each
from heads.rows import Rows, Selection
from heads.settings import check_positive
from heads.targets import TargetSpace, hold_out
from sail_encoder.io.devices import choose_device


class VectorProbe(Probe, BaseEstimator):
    """A probe of vectors [n, C] with one hyper-parameter.

    Several values of it are compared on the validation set, or on a tenth of the training set that is held out; the
    best is fitted again on both together. A single value is fitted at once.
    """

    parameter = ""
    """The hyper-parameter's name in `path_`."""

    held_out = 0.1
    """Share of the training set that is held out where there is no validation set."""

    refit: bool
    working_memory: int

    @abstractmethod
    def candidates(self) -> Sequence[float]:
        """Values of the hyper-parameter, the simplest model first: it wins where several are equally good.

        Raises:
            HeadError: If there is none, or one is not a positive number.
        """

    @abstractmethod
    def compare(self, rows: Rows, encoded: Array, values: Sequence[float], held: Rows) -> Iterable[Array]:
        """Fits each value on `rows`, and gives the scores [n, outputs] of `held` for each in turn."""

    @abstractmethod
    def learn(self, rows: Rows, encoded: Array, value: float) -> None:
        """Fits one value for good."""

    @abstractmethod
    def compute(self, rows: Rows) -> Array:
        """Raw outputs [n, outputs] of rows."""

    def check(self) -> None:
        super().check()
        check_positive("working_memory", self.working_memory)
        self.candidates()

    def fit(self, X: Any, y: Any, validation: Validation = None) -> Self:
        self.check()
        X, y = self._check_training(X, y)
        self.targets_ = TargetSpace.of(y, self.task)
        encoded, rows = self.targets_.encode(y), self._rows(X)
        values = self.candidates()
        if len(values) == 1 and validation is None:
            self.path_ = [Candidate(self.parameter, values[0])]
            self.chosen_ = values[0]
        else:
            rows, encoded = self._choose(rows, encoded, values, validation)
        self.learn(rows, encoded, self.chosen_)
        return self

    def _choose(
        self, rows: Rows, encoded: Array, values: Sequence[float], validation: Validation
    ) -> tuple[Rows, Array]:
        """Sets the path and the choice; returns what the choice is to be fitted on."""
        if validation is None:
            train, held = hold_out(encoded, self.targets_.kind, self.held_out, self.seed)
            parts = rows.take(train), encoded[train], rows.take(held), encoded[held]
            everything = rows, encoded
        else:
            if not len(validation[1]):
                raise HeadError("the validation set is empty; give samples, or None to hold some out")
            X, y = self._check_more(validation[0]), self.targets_.encode(validation[1])
            require_a_target_each(X, y)
            parts = rows, encoded, self._rows(X), y
            everything = rows + parts[2], np.concatenate((encoded, y))
        outputs = self.compare(*parts[:2], values, parts[2])
        qualities = [self.targets_.quality(self.targets_.restore(one), parts[3]) for one in outputs]
        self.path_ = [Candidate(self.parameter, *pair) for pair in zip(values, qualities, strict=True)]
        self.chosen_ = values[int(np.argmax(qualities))]
        return everything if self.refit else parts[:2]

    def scores(self, X: Any) -> Array:
        check_is_fitted(self, "chosen_")
        return self.targets_.restore(self.compute(self._rows(self._check_more(X))))

    def settings(self) -> dict[str, Any]:
        return self.get_params()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        if self.task == "regression":
            tags.estimator_type = "regressor"
            tags.regressor_tags = RegressorTags()
            tags.target_tags.multi_output = True
        else:
            tags.estimator_type = "classifier"
            tags.classifier_tags = ClassifierTags(multi_label=True)
        return tags

    def _rows(self, X: Array) -> Rows:
        device = choose_device(self.device)
        # Apple's GPUs have no float64, which everything here ends in.
        return Rows([(X, None)], torch.device("cpu") if device.type == "mps" else device, self.working_memory)

    def _check_training(self, X: Any, y: Any) -> tuple[Array, Any]:
        if y is None:
            raise HeadError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        y = as_array(y)
        X = self._check(X, reset=True)
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1 and self.task == "classification":
            y = column_or_1d(y, warn=True)
        require_a_target_each(X, y)
        return X, y

    def _check_more(self, X: Any) -> Array:
        return self._check(X, reset=False)

    def _check(self, X: Any, reset: bool) -> Array:
        """Checks what scikit-learn asks of features: two dimensions, numbers, finite, as many columns as before."""
        try:
            options = {"dtype": "numeric", "ensure_all_finite": False, "skip_check_array": isinstance(X, Selection)}
            X = validate_data(self, X=as_array(X), reset=reset, **options)
        except ValueError as error:
            raise HeadError(" ".join(str(error).split())) from None
        self._rows(X).check_finite()
        return X


def is_classifier(probe: VectorProbe) -> bool:
    """Tells whether scikit-learn may ask a probe for what only classifiers have."""
    return probe.task == "classification"


def binary_as_one_column(scores: Array, targets: TargetSpace) -> Array:
    """Scores [n, outputs] in scikit-learn's form, which for two classes is the margin [n] of the second."""
    if targets.kind == "classification" and targets.width == 2:
        return (scores[:, 1] - scores[:, 0]) / 2
    return scores
