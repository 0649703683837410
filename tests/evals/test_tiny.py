"""The measurement of sail-tiny, on few scenes and made-up features."""

import numpy as np

from evals import tiny


def made_up(count, seed):
    """Samples of two layers, of which the second tells three classes apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    telling = np.eye(3)[labels] + rng.normal(0, 0.1, (count, 3))
    return [(rng.normal(size=(count, 8)), labels), (telling, labels)]


def test_the_layer_that_knows_is_chosen():
    parts = [made_up(count, seed) for seed, count in enumerate((300, 80, 80))]
    best = tiny.best_layer([[part[layer] for part in parts] for layer in range(2)])
    assert (best.layer, best.value) == (1, 1.0)
    ignorant = tiny.best_layer([[part[0] for part in parts]])
    assert ignorant.value < 0.6


def test_everything_is_measured_and_printed(monkeypatch):
    monkeypatch.setattr(tiny, "PARTS", (range(40), range(40, 50), range(50, 60)))
    monkeypatch.setattr(tiny, "LANGUAGE", range(60, 64))
    results = tiny.measure("sail-tiny")
    assert list(results["probes"]) == ["raw pixels", "random weights", "sail-tiny"]
    assert results["probes"]["sail-tiny"]["color"]["accuracy"] >= 50
    assert {"caption: shape word", "caption: color word", "caption: every attribute"} <= set(results["language"])
    table = tiny.as_markdown(results)
    assert table.count("\n|") > 8
    assert f"| raw pixels | {results['probes']['raw pixels']['shape']['accuracy']} %" in table
