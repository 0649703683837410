"""Metrics by value, on scores made by hand, and how those of several seeds are summed up."""

import numpy as np
import pytest

from evals.metrics import measure
from evals.probe_report import group, summary_table
from evals.report import markdown_of
from evals.results import Result
from heads.ridge import RidgeProbe
from heads.targets import TargetSpace


def probe_of(targets, task="classification"):
    probe = RidgeProbe(task=task)
    probe.targets_ = TargetSpace.of(targets, task)
    return probe


def test_metrics_of_classes():
    truth = np.array([0, 0, 0, 1, 2, 5])
    scores = np.zeros((6, 7))
    # Right, right, third, right, last, second.
    for row, order in enumerate([[0], [0], [3, 4, 0], [1], [0, 1, 3, 4, 5, 6, 2], [6, 5]]):
        scores[row, order] = np.arange(len(order), 0, -1)
    measured = measure(probe_of(np.arange(7)), scores, truth)
    assert measured["top1"] == pytest.approx(3 / 6)
    assert measured["top5"] == pytest.approx(5 / 6)
    # Classes 0, 1, 2, 5 and the two that were only predicted, 3 and 6.
    assert measured["mean_per_class"] == pytest.approx((2 / 3 + 1) / 6)
    assert measured["f1"] == pytest.approx((2 / 3 + 1) / 6)


def test_metrics_of_labels():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    scores = np.array([[2.0, -1, -1], [1, 3, -1], [-1, 2, -1], [-2, -2, -1]])
    measured = measure(probe_of(np.array([[0, 1, 0], [1, 0, 1]])), scores, truth)
    # The first label is found at ranks 1 and 3, the second at 1 and 2, and the third does not occur.
    assert measured["mAP"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert measured["f1"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert measured["f1_micro"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert measured["exact"] == pytest.approx(2 / 4)


def test_metrics_of_numbers():
    measured = measure(probe_of(np.array([0.0, 1.0]), "regression"), np.array([[1.0], [2], [5]]), np.array([1.0, 2, 3]))
    assert measured == pytest.approx({"r2": 1 - 4 / 2, "mae": 2 / 3})


def test_seeds_are_summed_up_as_mean_and_deviation():
    results = [Result("net", "knn", seed, "top1", {"top1": top1}, "k", 5, []) for seed, top1 in enumerate((0.5, 0.7))]
    # The deviation of a sample: 0.1 * sqrt(2).
    assert "60.0 ± 14.1" in markdown_of(summary_table(group(results)))
