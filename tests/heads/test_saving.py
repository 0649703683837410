"""Heads are saved, loaded by name, and refuse features that they were not fitted on."""

import dataclasses
import json
import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
import torch

from heads import registry
from heads.attentive import AttentiveProbe
from heads.contract import HeadError
from heads.knn import KNNProbe
from heads.linear import LinearProbe
from heads.logistic import LogisticProbe
from heads.registry import get_head, head_names, load_probe
from heads.ridge import RidgeProbe
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.errors import UserError

SOURCE = FeatureSpec("sail-tiny", (2, 5), weights="abc123", norm=True, pool="mean")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    names = np.array(["ant", "bee", "cat"])[rng.integers(0, 3, 90)]
    X = rng.normal(size=(90, 8)).astype(np.float32) + (names == "cat")[:, None] - (names == "ant")[:, None]
    return X, names


def features_for(probe, X):
    return [row.reshape(2, 1, 4) for row in X] if probe.takes == "grids" else X


PROBES = [
    LinearProbe(steps=10),
    LinearProbe(steps=10, batch_norm=True, learning_rates=(0.1,)),
    LinearProbe(steps=10, batch_norm="affine", learning_rates=(0.1, 0.2)),
    LogisticProbe(),
    RidgeProbe(alphas=np.array([1.0, 10.0])),
    KNNProbe(),
    AttentiveProbe(steps=5, queries=2, project_keys=False),
    AttentiveProbe(steps=5, classifier_bias=False, batch_norm="affine"),
]
TASKS = [(probe, targets) for probe in PROBES for targets in ("names", "labels")]
TASKS += [
    (type(probe)(**{**probe.settings(), "task": "regression"}), "numbers")
    for probe in PROBES
    if not isinstance(probe, LogisticProbe)
]


@pytest.mark.parametrize(("probe", "targets"), TASKS)
def test_saved_and_loaded(data, probe, targets, tmp_path):
    X, names = features_for(probe, data[0]), data[1]
    y = {"names": names, "labels": np.stack([names == "ant", names != "bee"], 1) * 1, "numbers": data[0][:, 0] * 9 + 5}
    probe.fit(X, y[targets])
    probe.save(tmp_path / "head", SOURCE)
    again = load_probe(tmp_path / "head", SOURCE)
    assert type(again) is type(probe)
    assert again.chosen_ == probe.chosen_
    if targets != "numbers":
        np.testing.assert_array_equal(again.classes_, ["ant", "bee", "cat"] if targets == "names" else [0, 1])
    assert again.path_ == probe.path_
    np.testing.assert_array_equal(again.predict(X), probe.predict(X))
    np.testing.assert_allclose(again.scores(X), probe.scores(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "fff"}, "weights was abc123, now fff"),
        ({"layers": (5,)}, "layers"),
        ({"norm": False}, "norm"),
        ({"pool": "max"}, "pool"),
        ({"fuse": "mean"}, "fuse"),
    ],
)
def test_features_of_another_source_are_refused(data, change, message, tmp_path):
    RidgeProbe().fit(*data).save(tmp_path, SOURCE)
    with pytest.raises(HeadError, match=message):
        load_probe(tmp_path, dataclasses.replace(SOURCE, **change))
    load_probe(tmp_path, dataclasses.replace(SOURCE, model="a copy elsewhere"))
    load_probe(tmp_path)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.kind)
def test_a_head_is_used_where_it_is_loaded(data, probe, tmp_path):
    X, names = features_for(probe, data[0]), data[1]
    probe.fit(X, names).save(tmp_path)
    saved = json.loads((tmp_path / "head.json").read_text())
    assert not {"device", "working_memory"} & saved["settings"].keys()
    saved["settings"]["device"] = "cuda:0"  # as heads were saved before
    (tmp_path / "head.json").write_text(json.dumps(saved))
    again = load_probe(tmp_path, device="cpu")
    assert again.settings()["device"] == "cpu"
    np.testing.assert_array_equal(again.predict(X), probe.predict(X))
    with pytest.raises(UserError, match="device 'cuda:99' is not here"):
        load_probe(tmp_path, device="cuda:99")


@pytest.mark.parametrize("validated", [None, slice(60, 90)])
def test_neighbours_are_saved_in_the_type_of_their_features(data, validated, tmp_path):
    X, names = torch.from_numpy(data[0]).half(), data[1]
    held = None if validated is None else (X[validated], names[validated])
    probe = KNNProbe().fit(X[:60], names[:60], validation=held)
    saved = probe.tensors()["features"]
    assert saved.dtype == torch.float16
    assert torch.equal(saved, X[:60] if validated is None else X)
    probe.save(tmp_path)
    np.testing.assert_allclose(load_probe(tmp_path).scores(X), probe.scores(X))


@pytest.fixture
def _warned_always():
    """PyTorch warns of some things only once in a process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_warned_always")
@pytest.mark.parametrize("probe", [KNNProbe(), AttentiveProbe(steps=2), LinearProbe(steps=2)])
def test_memory_maps_are_read_without_a_warning(data, probe, tmp_path):
    np.save(tmp_path / "x.npy", data[0])
    X = features_for(probe, np.load(tmp_path / "x.npy", mmap_mode="r"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.fit(X, data[1]).save(tmp_path / "head")


def test_neighbours_are_saved_without_a_copy_of_their_features(data, tmp_path):
    np.save(tmp_path / "x.npy", data[0])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    probe = KNNProbe(k=5).fit(mapped, data[1])
    assert probe.tensors()["features"].data_ptr() == mapped.ctypes.data
    some = KNNProbe(refit=False).fit(mapped, data[1])
    kept = some.tensors()["features"]
    assert 0 < len(kept) < len(mapped)
    assert {row.tobytes() for row in kept.numpy()} < {row.tobytes() for row in data[0]}


def test_folders_without_a_head(data, tmp_path):
    with pytest.raises(HeadError, match="holds no head that can be read"):
        load_probe(tmp_path)
    RidgeProbe().fit(*data).save(tmp_path)
    with pytest.raises(HeadError, match="of kind 'ridge', not 'knn'"):
        KNNProbe.load(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(HeadError, match="holds no head that can be read"):
        load_probe(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"backbone": "a"}}, "holds no head that can be read"),
        ({"settings": {"rates": 1}}, "is of another version .*rates.*; fit it again"),
        ({"settings": {"learning_rates": "fast"}}, "learning_rates is 'fast'"),
        ({"settings": {"batch_norm": True}}, "do not fit its settings; fit it again"),
    ],
)
def test_heads_that_do_not_fit(data, change, message, tmp_path):
    LinearProbe(steps=1).fit(*data).save(tmp_path)
    description = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps({**description, **change}))
    with pytest.raises(HeadError, match=message) as caught:
        load_probe(tmp_path)
    assert "\n" not in str(caught.value)


FIRST_VERSION = Path(__file__).parents[1] / "golden/heads_of_0_1_0"


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_heads_of_the_first_version_load_with_a_line_about_their_settings(kind, capsys):
    expected = json.loads((FIRST_VERSION / "expected.json").read_text())
    X = np.array(expected["features"], np.float32)
    head = load_probe(FIRST_VERSION / kind, FeatureSpec("raw/14", (0,), pool="mean", weights="abc"))
    scores = head.scores([row.reshape(2, 1, 2) for row in X] if kind == "attentive" else X)
    np.testing.assert_allclose(scores, expected[kind]["scores"], rtol=1e-5, atol=1e-6)
    assert head.chosen_ == expected[kind]["chosen"]
    assert {candidate.name for candidate in head.path_} == {"learning_rate"}
    assert head.settings()["learning_rates"] == [candidate.value for candidate in head.path_]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"the saved {kind} head: 'lrs' is now 'learning_rates', 'lr_batch' is now 'base_batch_size'")


def test_a_head_that_is_saved_again_needs_no_line(tmp_path, capsys):
    load_probe(FIRST_VERSION / "linear").save(tmp_path)
    capsys.readouterr()
    again = load_probe(tmp_path)
    assert capsys.readouterr().err == ""
    assert again.learning_rates == [0.01, 0.1]


def test_other_packages_add_heads(monkeypatch):
    entry = EntryPoint("another", "heads.ridge:RidgeProbe", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    assert head_names()[-1] == "another"
    assert get_head("another") is RidgeProbe
    with pytest.raises(HeadError, match=r"no head 'linaer'; there is linear, .*, another"):
        get_head("linaer")


def test_every_built_in_head_is_there():
    for name in registry.BUILT_IN:
        assert get_head(name).kind == name


def test_importing_heads_costs_nothing():
    check = "import heads, sys; print([m for m in ('torch', 'sklearn', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
