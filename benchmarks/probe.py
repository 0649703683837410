"""Probes against scikit-learn, side by side in one run.

    python -m benchmarks.probe                       # 20,000 x 1,024 features of 100 classes; about half an hour
    python -m benchmarks.probe --samples 4000 --dim 256 --classes 20

- logistic against LogisticRegression: one fit each of the same objective, scikit-learn's at its default tolerance; ours
  at its own, and at `ROUGH`, the largest at which it still ends below scikit-learn's; and by what share that is;
- the ridge path against a loop of RidgeClassifier fits;
- knn against KNeighborsClassifier and, where it is installed, faiss;
- the peak growth of a process while it fits a memory-mapped array eight times as large as its working memory, without
  the pages of the file, looked at every millisecond (on Linux alone). It has more rows and fewer columns than the
  others, since it is rows that are without a limit.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from heads.knn import KNNProbe
from heads.logistic import ROUGH, LogisticProbe
from heads.ridge import ALPHAS, RidgeProbe

Array = np.ndarray[Any, Any]


def make_features(samples: int, dim: int, classes: int) -> tuple[Array, Array]:
    """Gaussian classes whose variances fall off as those of real features do, float32."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, samples)
    spectrum = np.arange(1, dim + 1) ** -0.7
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    centers = 0.25 * rng.normal(size=(classes, dim))
    features = ((rng.normal(size=(samples, dim)) + centers[labels]) * spectrum) @ turn * 3 + rng.normal(size=dim)
    return features.astype(np.float32), labels


def objective(coef: Array, intercept: Array, features: Array, labels: Array, penalty: float) -> float:
    """scikit-learn's objective of logistic regression, in float64."""
    logits = features.astype(np.float64) @ coef.T + intercept
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float((coef**2).sum() / 2 + penalty * losses.sum())


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, and what it returns."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def compare_logistic(features: Array, labels: Array, penalty: float) -> dict[str, float]:
    """Seconds of one fit each, and by what share the objectives are above the lowest.

    A row for each of ours says how many times as long scikit-learn takes, in float64 and in float32.
    """
    fits: dict[str, tuple[Any, Array]] = {
        "ours": (LogisticProbe(C=(penalty,)), features),
        "ours_rough": (LogisticProbe(C=(penalty,), tol=ROUGH), features),
        "sklearn_float64": (LogisticRegression(C=penalty, max_iter=5000), features.astype(np.float64)),
        "sklearn_float32": (LogisticRegression(C=penalty, max_iter=5000), features),
    }
    taken, reached = {}, {}
    for name, (model, matrix) in fits.items():
        taken[name], fitted = seconds(partial(model.fit, matrix, labels))
        reached[name] = objective(fitted.coef_, fitted.intercept_, features, labels, penalty)
    report = {f"{name}_seconds": value for name, value in taken.items()}
    report |= {f"{name}_above_lowest": value / min(reached.values()) - 1 for name, value in reached.items()}
    for mine in ("ours", "ours_rough"):
        report |= {f"{mine}_over_{name}": taken[name] / taken[mine] for name in fits if name.startswith("sklearn")}
    return report


def compare_ridge(features: Array, labels: Array) -> dict[str, float]:
    """The whole path, with a validation set, against one fit after the other, in the float64 that ours computes in."""
    cut = len(features) * 9 // 10
    held = features[cut:], labels[cut:]
    train = features[:cut], labels[:cut]
    exact = train[0].astype(np.float64), train[1]
    ours_seconds, _ = seconds(lambda: RidgeProbe(refit=False).fit(*train, validation=held))
    loop_seconds, _ = seconds(lambda: [RidgeClassifier(alpha=alpha).fit(*exact).score(*held) for alpha in ALPHAS])
    return {"ours_seconds": ours_seconds, "loop_seconds": loop_seconds, "ratio": loop_seconds / ours_seconds}


def compare_knn(features: Array, labels: Array) -> dict[str, float]:
    """Twenty neighbours of a tenth of the samples among the others."""
    cut = len(features) * 9 // 10
    train, queries = features[:cut], features[cut:]
    ours_seconds, _ = seconds(lambda: KNNProbe(k=(20,)).fit(train, labels[:cut]).predict(queries))
    model = KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute")
    their_seconds, _ = seconds(lambda: model.fit(normalize(train), labels[:cut]).predict(normalize(queries)))
    report = {"ours_seconds": ours_seconds, "sklearn_seconds": their_seconds, "ratio": their_seconds / ours_seconds}
    if importlib.util.find_spec("faiss"):
        faiss_seconds, _ = seconds(lambda: search_with_faiss(normalize(train), normalize(queries)))
        report |= {"faiss_seconds": faiss_seconds, "ratio_faiss": faiss_seconds / ours_seconds}
    return report


def search_with_faiss(train: Array, queries: Array) -> Any:
    faiss = importlib.import_module("faiss")

    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    return index.search(queries, 20)


def fit_mapped(kind: str, path: str, labels: Array, working_memory: int, ready: Any, go: Any) -> None:
    """Fits a probe on a few rows of a memory-mapped array, which loads its code, and where asked to on all rows."""
    mapped = np.load(path, mmap_mode="r")
    probes = {"ridge": RidgeProbe, "knn": KNNProbe, "logistic": LogisticProbe}
    settings: dict[str, dict[str, Any]] = {
        "ridge": {"alphas": (1.0,)},
        "logistic": {"C": (0.01,), "max_iter": 5},
        "knn": {"k": (5,)},
    }
    probes[kind](**settings[kind]).fit(mapped[:500], labels[:500])
    ready.set()
    go.wait()
    probe = probes[kind](**settings[kind], working_memory=working_memory).fit(mapped, labels)
    probe.predict(mapped[:1000])


def anonymous_bytes(pid: int) -> int:
    """What a process has in memory but for pages of files; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def peak_growth(kind: str, path: str, labels: Array, working_memory: int) -> int:
    """Bytes by which a process grows at most while it fits a probe, seen from outside."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=fit_mapped, args=(kind, path, labels, working_memory, ready, go))
    process.start()
    while not ready.wait(0.1) and process.is_alive():
        pass
    before = peak = anonymous_bytes(process.pid or 0)
    go.set()
    while process.is_alive():
        peak = max(peak, anonymous_bytes(process.pid or 0))
        time.sleep(0.001)
    if process.exitcode:
        raise SystemExit(f"the {kind} probe ended with status {process.exitcode}")
    return peak - before


def measure_memory(samples: int, dim: int, classes: int, block: int) -> dict[str, Any]:
    """Growth of a process for each probe, with a block of memory for an array that is larger."""
    if not anonymous_bytes(os.getpid()):
        return {"not_measured": "this system does not tell a process's memory apart from pages of files"}
    features, labels = make_features(samples, dim, classes)
    report: dict[str, Any] = {"array_bytes": features.nbytes, "working_memory_bytes": block}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "features.npy")
        np.save(path, features)
        for kind in ("ridge", "logistic", "knn"):
            report[f"{kind}_growth_bytes"] = peak_growth(kind, path, labels, block)
    return report


def main() -> None:
    """Runs everything and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--penalties", type=float, nargs="+", default=[0.01, 1.0])
    arguments = parser.parse_args()
    features, labels = make_features(arguments.samples, arguments.dim, arguments.classes)
    report: dict[str, Any] = {
        "memory": measure_memory(8 * arguments.samples, arguments.dim // 4, arguments.classes, features.nbytes // 4),
        "knn": compare_knn(features, labels),
        "ridge": compare_ridge(features, labels),
    }
    for penalty in arguments.penalties:
        report[f"logistic C={penalty}"] = compare_logistic(features, labels, penalty)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
