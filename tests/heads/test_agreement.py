"""logistic, ridge and knn against scikit-learn, and against a second way of computing the same."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from heads.contract import HeadError
from heads.knn import KNNProbe
from heads.logistic import LogisticProbe, LogisticSolver
from heads.ridge import RidgePath, RidgeProbe
from heads.rows import Rows
from heads.targets import TargetSpace
from sail_encoder.io.errors import UserError


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:900] / 16, y[:900], X[900:] / 16, y[900:]


def softmax_objective(coef, intercept, X, y, C):
    logits = X.astype(float) @ coef.T + intercept
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    return (coef**2).sum() / 2 + C * losses.sum()


@pytest.mark.parametrize("C", [1e-4, 0.1, 100.0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_logistic_finds_the_minimum_of_scikit_learn(digits, C, dtype):
    X, y, more, _ = digits
    X = X.astype(dtype)
    ours = LogisticProbe(C=(C,)).fit(X, y)
    theirs = LogisticRegression(C=C, tol=1e-9, max_iter=10_000).fit(X.astype(float), y)
    reached = softmax_objective(ours.coef_, ours.intercept_, X, y, C)
    expected = softmax_objective(theirs.coef_, theirs.intercept_, X, y, C)
    assert reached == pytest.approx(expected, rel=1e-6)
    assert (ours.predict(more) == theirs.predict(more)).all()
    np.testing.assert_allclose(ours.predict_proba(more), theirs.predict_proba(more), atol=2e-3)


@pytest.mark.parametrize(("rows", "sample"), [(900, 50), (900, 500), (40, 50)])
def test_logistic_does_not_depend_on_how_its_curvature_is_estimated(digits, rows, sample, monkeypatch):
    X, y = digits[0][:rows], digits[1][:rows]
    monkeypatch.setattr("heads.logistic.SAMPLE", sample)
    ours = LogisticProbe(C=(1.0,)).fit(X, y)
    theirs = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)


def test_logistic_takes_fewer_steps_from_the_last_penalty(digits):
    rows, penalties = Rows([(digits[0], None)], torch.device("cpu"), 2**30), 10.0 ** np.linspace(-3, 2, 11)
    path, steps, alone = LogisticSolver(rows, digits[1], 10), 0, 0
    for C in penalties:
        path.solve(C, 1000, 1e-6)
        steps += path.steps
        single = LogisticSolver(rows, digits[1], 10)
        single.solve(C, 1000, 1e-6)
        alone += single.steps
    assert steps < 0.8 * alone


def test_logistic_of_two_classes_is_one_sigmoid(digits):
    X, y = digits[0], digits[1] % 2
    ours = LogisticProbe(C=(1.0,)).fit(X, y)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-3)
    assert ours.predict_proba(X).sum(1) == pytest.approx(1)


def test_logistic_of_labels_is_a_sigmoid_each(digits):
    X, y = digits[0], digits[1]
    labels = np.stack([y % 2, y > 4], 1).astype(int)
    ours = LogisticProbe(C=(1.0,)).fit(X, labels)
    theirs = OneVsRestClassifier(LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)).fit(X, labels)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-3)
    assert (ours.predict(X) == theirs.predict(X)).all()


def test_logistic_with_ill_conditioned_features_takes_few_steps(digits):
    X, y = digits[0] * 10.0 ** np.linspace(-1.5, 1.5, 64), digits[1]
    ours = LogisticProbe(C=(1.0,)).fit(X, y)
    assert ours.n_iter_ < 300
    theirs = LogisticRegression(C=1.0, max_iter=ours.n_iter_).fit(X, y)
    reached = softmax_objective(ours.coef_, ours.intercept_, X, y, 1.0)
    assert reached < softmax_objective(theirs.coef_, theirs.intercept_, X, y, 1.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_logistic_says_when_its_steps_were_not_enough(digits, dtype):
    X, y = digits[0].astype(dtype), digits[1]
    with pytest.warns(ConvergenceWarning, match="C=1 ended at max_iter=4 before it converged"):
        ended = LogisticProbe(C=1.0, max_iter=4).fit(X, y)
    assert ended.n_iter_ == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        needed = LogisticProbe(C=1.0).fit(X, y).n_iter_
        assert LogisticProbe(C=1.0, max_iter=needed + 1).fit(X, y).n_iter_ == needed
    with pytest.warns(ConvergenceWarning):
        LogisticProbe(C=1.0, max_iter=needed - 1).fit(X, y)


def test_the_path_is_chosen_on_validation_and_fitted_again_on_both(digits):
    X, y, more, labels = digits
    C = (1e-6, 1e-2, 1.0)
    probe = LogisticProbe(C=C).fit(X, y, validation=(more, labels))
    alone = [LogisticProbe(C=(c,)).fit(X, y) for c in C]
    assert [candidate.value for candidate in probe.path_] == list(C)
    assert [candidate.quality for candidate in probe.path_] == [one.score(more, labels) for one in alone]
    best = int(np.argmax([candidate.quality for candidate in probe.path_]))
    again = LogisticProbe(C=(C[best],)).fit(np.concatenate((X, more)), np.concatenate((y, labels)))
    np.testing.assert_allclose(probe.coef_, again.coef_, atol=1e-8)
    kept = LogisticProbe(C=C, refit=False).fit(X, y, validation=(more, labels))
    np.testing.assert_allclose(kept.coef_, alone[best].coef_, atol=1e-8)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("rows", [900, 40])
def test_ridge_is_that_of_scikit_learn(digits, alpha, rows):
    X, y, more = digits[0][:rows], digits[1][:rows], digits[2]
    ours = RidgeProbe(alphas=(alpha,)).fit(X, y)
    theirs = RidgeClassifier(alpha=alpha, solver="svd").fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-7)
    np.testing.assert_allclose(ours.decision_function(more), theirs.decision_function(more), atol=1e-7)
    numbers = X[:, :3] @ np.ones((3, 2)) + y[:, None]
    regression = RidgeProbe(alphas=(alpha,), task="regression").fit(X, numbers)
    np.testing.assert_allclose(regression.predict(more), Ridge(alpha, solver="svd").fit(X, numbers).predict(more))


def test_ridge_of_labels(digits):
    X, y = digits[0], digits[1]
    labels = np.stack([y % 2, y > 4, y == 3], 1).astype(int)
    ours, theirs = RidgeProbe(alphas=2.0).fit(X, labels), RidgeClassifier(alpha=2.0, solver="svd").fit(X, labels)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-7)
    assert (ours.predict(X) == theirs.predict(X)).all()


def test_ridge_of_two_classes(digits):
    X, y = digits[0], digits[1] > 4
    ours, theirs = RidgeProbe(alphas=(2.0,)).fit(X, y), RidgeClassifier(alpha=2.0).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-7)


def test_one_decomposition_gives_the_whole_path(digits, monkeypatch):
    X, y, more, labels = digits
    made = []
    original = RidgePath.__init__
    monkeypatch.setattr(RidgePath, "__init__", lambda self, *args: (made.append(1), original(self, *args))[1])
    alphas = tuple(10.0 ** np.arange(6, -5, -1))
    probe = RidgeProbe(alphas=alphas).fit(X, y, validation=(more, labels))
    assert len(made) == 2
    RidgeProbe(alphas=alphas, refit=False).fit(X, y, validation=(more, labels))
    assert len(made) == 3
    expected = [RidgeClassifier(alpha=alpha).fit(X, y).score(more, labels) for alpha in alphas]
    assert [candidate.quality for candidate in probe.path_] == pytest.approx(expected)


def votes_one_by_one(train, encoded, queries, k, temperature, classes):
    """The votes of the protocol, an image at a time."""
    shares = np.zeros((len(queries), classes))
    for row, query in enumerate(queries):
        similarity = np.array([query @ one / np.linalg.norm(query) / np.linalg.norm(one) for one in train])
        for neighbour in np.argsort(-similarity)[:k]:
            shares[row, encoded[neighbour]] += np.exp(similarity[neighbour] / temperature)
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("working_memory", [2**30, 20_000])
def test_knn_is_the_vote_of_the_protocol(digits, working_memory):
    X, y, more = digits[0], digits[1], digits[2][:50]
    for k in (1, 7, 100):
        probe = KNNProbe(k=(k,), temperature=0.05, working_memory=working_memory).fit(X, y)
        np.testing.assert_allclose(probe.predict_proba(more), votes_one_by_one(X, y, more, k, 0.05, 10), atol=1e-9)


@pytest.mark.parametrize("labels", [True, False])
def test_knn_counts_votes_within_its_memory(digits, labels, monkeypatch):
    X, more = digits[0].astype(np.float32), digits[2].astype(np.float32)
    y = np.random.default_rng(0).integers(0, 2, (900, 30)) if labels else np.arange(900) // 2
    sizes, original = [], KNNProbe._count

    def count(self, similarities, index, ks):
        sizes.append(len(index) * self.targets_.width * 8 * (max(ks) if labels else 1))
        return original(self, similarities, index, ks)

    monkeypatch.setattr(KNNProbe, "_count", count)
    memory = 2**19
    scores = KNNProbe(k=50, working_memory=memory).fit(X, y).scores(more)
    assert max(sizes) <= memory / 4
    np.testing.assert_allclose(scores, KNNProbe(k=50).fit(X, y).scores(more), rtol=1e-5, atol=1e-7)


def test_knn_is_that_of_scikit_learn(digits):
    X, y, more, _ = digits
    theirs = make_pipeline(
        Normalizer(),
        # On the sphere the squared distance is 2 - 2 * cosine.
        KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07)),
    ).fit(X, y)
    assert (KNNProbe(k=(20,)).fit(X, y).predict(more) == theirs.predict(more)).all()


def test_several_k_in_one_pass_are_each_alone(digits):
    X, y, more, labels = digits
    ks = (1, 5, 20, 5000)
    probe = KNNProbe(k=ks, refit=False).fit(X, y, validation=(more, labels))
    alone = {k: KNNProbe(k=(k,)).fit(X, y).score(more, labels) for k in ks}
    assert {candidate.value: candidate.quality for candidate in probe.path_} == pytest.approx(alone)


@pytest.mark.parametrize("probe", [LogisticProbe(C=(0.1,)), RidgeProbe(), KNNProbe(k=(5,))])
def test_they_work_in_pipelines_and_searches(digits, probe):
    X, y, more, labels = digits
    name = {"logistic": "C", "ridge": "alphas", "knn": "k"}[probe.kind]
    grid = {f"{type(probe).__name__.lower()}__{name}": [(1,), (10,)]}
    search = GridSearchCV(make_pipeline(StandardScaler(), probe), grid, cv=2).fit(X, y)
    assert search.score(more, labels) > 0.8


@pytest.mark.parametrize("kind", [LogisticProbe, RidgeProbe, KNNProbe])
def test_standardized_blocks_of_a_memory_map_give_the_same(digits, kind, tmp_path):
    X, y, more, _ = digits
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {
        LogisticProbe: {"C": (0.01, 1.0), "standardize": True, "tol": 1e-12},
        RidgeProbe: {"standardize": True},
        KNNProbe: {},
    }[kind]
    whole = kind(**options).fit(X.astype(np.float32), y)
    blocks = kind(**options, working_memory=X[:100].nbytes).fit(mapped, y)
    assert whole.chosen_ == blocks.chosen_
    np.testing.assert_allclose(blocks.scores(more), whole.scores(more), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (LogisticProbe(C=()), r"C is \(\); give one positive number or several, such as 0.1 or \[0.1, 1\]"),
        (LogisticProbe(C=(0.0, 1.0)), r"C is \(0.0, 1.0\); give"),
        (LogisticProbe(C="1e3"), "C is '1e3'; give"),
        (LogisticProbe(C=[1.0, None]), r"C is \[1.0, None\]; give"),
        (LogisticProbe(C=float("nan")), "C is nan; give"),
        (LogisticProbe(task="regression"), "use ridge, knn or linear for numbers"),
        (LogisticProbe(max_iter=0), "max_iter is 0; give a positive whole number"),
        (LogisticProbe(tol=-1.0), "tol is -1.0; give 0 or a positive number"),
        (KNNProbe(k=2.5), r"k is 2.5; give one positive whole number or several, such as 20 or \[10, 20\]"),
        (KNNProbe(k=True), "k is True; give"),
        (KNNProbe(temperature=0.0), "temperature is 0.0; give a positive number"),
        (RidgeProbe(alphas=np.array([1.0, -1.0])), r"alphas is \[1.0, -1.0\]; give"),
        (RidgeProbe(task="ranking"), "task 'ranking' is unknown; use classification or regression"),
        (RidgeProbe(seed=-1), "seed is -1; give 0 or a positive whole number"),
        (RidgeProbe(working_memory="1 GB"), "working_memory is '1 GB'; give a positive number"),
    ],
)
def test_settings_that_cannot_be(digits, probe, message):
    for found in (probe.check, lambda: probe.fit(digits[0], digits[1])):
        with pytest.raises(HeadError, match=message) as caught:
            found()
        assert "\n" not in str(caught.value)


def test_a_device_that_is_not_here_is_found_before_there_are_features():
    with pytest.raises(UserError, match="device 'gpu' is not understood"):
        KNNProbe(device="gpu").check()


@pytest.mark.parametrize(
    ("alone", "listed"),
    [
        (LogisticProbe(C=0.1), LogisticProbe(C=[0.1])),
        (RidgeProbe(alphas=10), RidgeProbe(alphas=np.array([10.0]))),
        (KNNProbe(k=np.int64(5)), KNNProbe(k=range(5, 6))),
    ],
)
def test_a_hyper_parameter_is_a_number_or_several(digits, alone, listed):
    X, y, more, _ = digits
    np.testing.assert_array_equal(alone.fit(X, y).scores(more), listed.fit(X, y).scores(more))
    assert [candidate.quality for candidate in alone.path_] == [None]


@pytest.mark.parametrize("kind", [LogisticProbe, RidgeProbe, KNNProbe])
def test_data_that_cannot_be_learned(digits, kind):
    X, y = digits[0][:30], digits[1][:30]
    holes = X.copy()
    holes[3, 5] = np.nan
    names = np.array(["cat", None] * 15, dtype=object)
    cases = [
        (holes, y, "row 3 of the features holds NaN or inf"),
        (X, np.zeros(30), "all 30 labels are one class, '0.0'"),
        (X, names, "15 of 30 labels are missing"),
        (X, y[:20], "30 rows of features, but 20 targets"),
        (X[:5], np.arange(5), "no class has two samples"),
        (X, np.full((30, 3), 2), "a matrix of labels holds zeros and ones"),
    ]
    for features, targets, message in cases:
        with pytest.raises(HeadError, match=message) as caught:
            kind().fit(features, targets)
        assert "\n" not in str(caught.value)
    with pytest.raises(HeadError, match="the validation set is empty"):
        kind().fit(X, y, validation=(X[:0], y[:0]))
    with pytest.raises(HeadError, match="3 rows of features, but 4 targets"):
        kind().fit(X, y, validation=(X[:3], y[:4]))
    with pytest.raises(HeadError, match="targets have 2 columns, those of training 3"):
        kind().fit(X, np.eye(3)[y % 3], validation=(X, np.eye(2)[y % 2]))
    with pytest.raises(HeadError, match="there are no targets"):
        TargetSpace.of([], "classification")
    with pytest.raises(HeadError, match="class '11' is in the validation set"):
        kind().fit(X, y, validation=(X[:1], np.array([11])))
