"""The measurement of sail-tiny, on few scenes and made-up features."""

import numpy as np

from evals import tiny
from evals.scenes import COLORS, SHAPES


def made_up(count, seed):
    rng = np.random.default_rng(seed)
    labels = {"shape": rng.integers(len(SHAPES), size=count), "color": rng.integers(len(COLORS), size=count)}
    telling = np.eye(len(SHAPES))[labels["shape"]] + rng.normal(0, 0.1, (count, len(SHAPES)))
    return labels, [rng.normal(size=(count, 8)), telling]


def test_the_probe_chooses_the_layer_that_knows():
    parts = {
        name: made_up(count, seed) for seed, (name, count) in enumerate(dict(train=300, validation=80, test=80).items())
    }
    labels = {name: part[0] for name, part in parts.items()}
    features = {name: part[1] for name, part in parts.items()}
    results = tiny.probe(features, labels)
    assert results["shape"] == {"accuracy": 100.0, "layer": 1}
    assert results["color"]["accuracy"] < 40


def test_everything_is_measured_and_printed(monkeypatch):
    for name, seeds in {"TRAIN": range(40), "VALIDATION": range(40, 50), "TEST": range(50, 60)}.items():
        monkeypatch.setattr(tiny, name, seeds)
    monkeypatch.setattr(tiny, "LANGUAGE", range(60, 64))
    results = tiny.measure("sail-tiny")
    assert list(results["probes"]) == ["raw pixels", "random weights", "sail-tiny"]
    assert {"caption: shape word", "caption: color word", "caption: every attribute"} <= set(results["language"])
    table = tiny.as_markdown(results)
    assert table.count("\n|") > 8
    assert f"| raw pixels | {results['probes']['raw pixels']['shape']['accuracy']} %" in table
