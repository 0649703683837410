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
    scores.add(mask(0, 1, 2, 3), mask(1, 2, 3, 4), True)
    scores.add(mask(7), mask(7, 8, 9), True)
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
    scores.add(mask(), mask(), False)
    scores.add(mask(0, 1), mask(), False)
    scores.add(mask(), mask(4, 5, 6), True)
    scores.add(mask(1, 2), mask(1, 2), True)
    scores.add(mask(5), mask(5), True)
    found = scores.as_dict()
    assert found["cIoU"] == pytest.approx(3 / (2 + 3 + 2 + 1), abs=1e-6)
    assert found["gIoU"] == 3 / 5
    assert found["N-acc"] == 1 / 2
    assert found["T-acc"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["P@0.5"] == pytest.approx(2 / 3, abs=1e-6), "of those with a target, as in gRefCOCO's evaluation"


def test_a_target_without_pixels_is_no_absent_one():
    """Annotations decide, as in gRefCOCO's evaluation; such a mask is never found."""
    scores = ReferringScores()
    scores.add(mask(), mask(), True)
    scores.add(mask(1), mask(), True)
    found = scores.as_dict()
    assert [found[name] for name in ("cIoU", "gIoU", "P@0.5", "N-acc", "T-acc")] == [0, 0, 0, None, 0.5]


def test_nothing_but_absent_targets_has_no_cumulated_score():
    scores = ReferringScores()
    scores.add(mask(), mask(), False)
    assert scores.as_dict()["cIoU"] is None
    assert scores.as_dict()["gIoU"] == 1


def test_the_table_leaves_out_what_no_row_has():
    scores = ReferringScores()
    scores.add(mask(0), mask(0, 1), True)
    table = as_table({"val": scores.as_dict()})
    assert list(table) == [
        ["expressions of", "count", "cIoU %", "gIoU %", "P@0.5 %", "T-acc %"],
        ["val", "1", "50.00", "50.00", "100.00", "100.00"],
    ]
