"""cIoU and gIoU against values worked out by hand."""

import numpy as np
import pytest

from evals.referring.scores import ReferringScores, as_table


def mask(*inside):
    """A mask of ten pixels."""
    found = np.zeros((2, 5), bool)
    found.flat[list(inside)] = True
    return found


def test_both_measures():
    """Three of five and one of three: cIoU 4 / 8, gIoU their mean."""
    scores = ReferringScores()
    scores.add(mask(0, 1, 2, 3), mask(1, 2, 3, 4))
    scores.add(mask(7), mask(7, 8, 9))
    found = scores.as_dict()
    assert found["cIoU"] == 4 / 8
    assert found["gIoU"] == pytest.approx((3 / 5 + 1 / 3) / 2, abs=1e-6)
    assert found["P@0.5"] == 0.5
    assert found["T-acc"] == 1
    assert found["N-acc"] is None
    assert found["expressions"] == 2


def test_expressions_without_a_target():
    """Found to be none: IoU 1, no pixels. Missed: IoU 0, and its pixels add to the union. A target missed: IoU 0."""
    scores = ReferringScores()
    scores.add(mask(), mask())
    scores.add(mask(0, 1), mask())
    scores.add(mask(), mask(4, 5, 6))
    scores.add(mask(1, 2), mask(1, 2))
    found = scores.as_dict()
    assert found["cIoU"] == pytest.approx(2 / (2 + 3 + 2), abs=1e-6)
    assert found["gIoU"] == 2 / 4
    assert found["N-acc"] == 1 / 2
    assert found["T-acc"] == 1 / 2


def test_nothing_but_absent_targets_has_no_cumulated_score():
    scores = ReferringScores()
    scores.add(mask(), mask())
    assert scores.as_dict()["cIoU"] is None
    assert scores.as_dict()["gIoU"] == 1


def test_the_table_leaves_out_what_no_row_has():
    scores = ReferringScores()
    scores.add(mask(0), mask(0, 1))
    table = as_table({"val": scores.as_dict()})
    assert list(table) == [
        ["expressions of", "count", "cIoU %", "gIoU %", "P@0.5 %", "T-acc %"],
        ["val", "1", "50.00", "50.00", "100.00", "100.00"],
    ]
