"""Rows that are read a block at a time."""

import numpy as np
import pytest
import torch

from heads.rows import CenteredRows, Rows

MATRIX = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)


@pytest.mark.parametrize("working_memory", [2**20, 2000])
@pytest.mark.parametrize("count", [1, 7, 600, 1000, 5000])
def test_a_sample_is_spread_evenly(working_memory, count):
    rows = CenteredRows(Rows([(MATRIX, None)], torch.device("cpu"), working_memory))
    sample = rows.sample(count).numpy()
    count = min(count, 1000)
    expected = (MATRIX - MATRIX.mean(0, dtype=np.float64))[np.arange(count) * 1000 // count]
    np.testing.assert_allclose(sample, expected, atol=1e-6)


def test_a_sample_does_not_keep_the_blocks_it_is_taken_from(monkeypatch):
    rows, kept = CenteredRows(Rows([(MATRIX, None)], torch.device("cpu"), 2000)), []
    cat = torch.cat
    monkeypatch.setattr(
        torch, "cat", lambda parts: kept.extend(part.untyped_storage().nbytes() for part in parts) or cat(parts)
    )
    rows.sample(100)
    assert sum(kept) == 100 * 4 * 4
