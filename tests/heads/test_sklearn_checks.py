"""logistic, ridge and knn are scikit-learn estimators."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from heads.knn import KNNProbe
from heads.logistic import LogisticProbe
from heads.ridge import RidgeProbe

ESTIMATORS = [
    LogisticProbe(C=(0.01, 1.0)),
    RidgeProbe(),
    RidgeProbe(alphas=(1.0,), task="regression"),
    KNNProbe(k=(5,)),
    KNNProbe(k=(5,), task="regression"),
]


@parametrize_with_checks(ESTIMATORS)
def test_estimator_checks(estimator, check):
    check(estimator)
