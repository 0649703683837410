"""What does not depend on training: neighbours, logistic regression, shares held out, metrics, colors."""

import numpy as np
import pytest
from recipe_values import blobs, draw, recipe_probe, recorded, segmentation_request

from evals.datasets.labelled import LabelledImages
from evals.datasets.splits import split
from evals.metrics import measure
from evals.segmentation.augment import distort_colors, saturate, turn_hue
from heads.knn import KNNProbe
from heads.targets import TargetSpace, hold_out
from sail_encoder.images.sources import ImageList

NAME = "imagenet1k-dinov2-knn-logistic"


def test_neighbors():
    values, probe = recorded(NAME), recipe_probe(NAME, "knn")
    assert probe.k == values["settings"]["k"]
    assert probe.temperature == values["settings"]["temperature"]
    (X, y), (queries, truth) = (blobs(values["knn"]["inputs"], part) for part in ("train", "test"))
    for result in values["knn"]["results"]:
        one = KNNProbe(k=result["k"], temperature=probe.temperature).fit(X, y)
        shares, votes = one.scores(queries), np.array(result["votes"])
        np.testing.assert_allclose(shares, votes / votes.sum(1, keepdims=True), atol=1e-4)
        measured = measure(one, shares, truth)
        assert measured["top1"] == pytest.approx(result["top-1"])
        assert measured["top5"] == pytest.approx(result["top-5"])


def test_top5_of_few_votes():
    """Three votes leave almost all of 40 classes at zero, and PyTorch's order decides which of them are among five."""
    values = recorded(NAME)["knn_ties"]
    (X, y), (queries, truth) = (blobs(values["inputs"], part) for part in ("train", "test"))
    one = KNNProbe(k=values["k"]).fit(X, y)
    measured = measure(one, one.scores(queries), truth)
    assert measured["top1"] == pytest.approx(values["top-1"])
    assert measured["top5"] == pytest.approx(values["top-5"])


def test_logistic_regression():
    values, probe = recorded(NAME), recipe_probe(NAME, "logistic")
    logistic = values["logistic"]
    assert sorted(probe.candidates()) == pytest.approx(values["settings"]["C"], rel=1e-6)
    assert probe.max_iter == values["settings"]["max_iter"]
    train, val, (more, _) = (blobs(logistic["inputs"], part) for part in ("train", "validation", "test"))
    probe.fit(*train, validation=val)
    assert probe.chosen_ == pytest.approx(logistic["chosen"], rel=1e-6)
    qualities = [candidate.quality for candidate in probe.path_]
    # A validation image more or less where two classes are equally likely to the last digits.
    np.testing.assert_allclose(qualities, logistic["qualities"], atol=1.01 / len(val[1]))
    np.testing.assert_allclose(probe.predict_proba(more), logistic["probabilities"], atol=1e-4)


def test_shares_that_are_held_out():
    values = recorded(NAME)
    for entry in values["hold_out"]:
        train, held = hold_out(np.zeros((entry["images"], 2)), "multilabel", 0.1, 0)
        assert [len(train), len(held)] == [entry["training"], entry["held_out"]]
    for entry in values["logistic"]["hold_out"]:
        count = entry["images"]
        train, held = hold_out(np.arange(count) % 5, "classification", 0.1, 0)
        assert [len(train), len(held)] == [entry["training"], entry["held_out"]]
        keys = [f"{row:06d}" for row in range(2 * count)]
        parts = ["train"] * count + ["test"] * count
        images = LabelledImages("made", ImageList("made", []), keys, np.arange(2 * count) % count % 5, parts)
        splits = split(images, val_share=0.1)
        assert [len(splits.train), len(splits.val)] == [entry["training"], entry["held_out"]]


@pytest.mark.parametrize("case", recorded("imagenet1k-dinov3-linear")["metrics"], ids=lambda case: case["case"])
def test_metrics_of_classes(case):
    scores = draw(case["inputs"]["scores"]).astype(np.float64)
    scores = scores.clip(0) if case["negative_is_zero"] else scores
    probe = KNNProbe()
    probe.targets_ = TargetSpace.of(np.arange(case["classes"]), "classification")
    measured = measure(probe, scores, draw(case["inputs"]["truth"]))
    assert measured["top1"] == pytest.approx(case["mean"]["top-1"])
    assert measured["top5"] == pytest.approx(case["mean"]["top-5"])
    assert measured["mean_per_class"] == pytest.approx(case["mean_per_class"]["top-1"])


COLORS = {"ade20k_linear_dinov3": "dinov3", "ade20k_linear_dinov2": "mmseg"}


@pytest.mark.parametrize(("name", "colors"), COLORS.items())
def test_colors_are_varied_as_far(name, colors):
    """The draws of our generator have the bounds, shares and means of the source's."""
    assert (segmentation_request(name).colors or "mmseg") == colors
    values = recorded(name)["distortion_draws"]
    drawn = Draws()
    for _ in range(4000):
        distort_colors(np.full((1, 1, 3), 90, np.uint8), drawn, colors)
    for kind, amounts in drawn.amounts.items():
        wanted = values[kind]
        assert len(amounts) / 4000 == pytest.approx(wanted["share"], abs=0.03)
        spread = wanted["high"] - wanted["low"]
        assert min(amounts) == pytest.approx(wanted["low"], abs=0.01 * spread)
        assert max(amounts) == pytest.approx(wanted["high"], abs=0.01 * spread)
        assert np.mean(amounts) == pytest.approx(wanted["mean"], abs=0.03 * spread)


class Draws:
    """A generator that remembers what was drawn, by its bounds."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.amounts = {"brightness": [], "contrast": [], "saturation": [], "hue": []}
        self.factors = 0

    def random(self):
        return self.rng.random()

    def integers(self, low, high):
        self.amounts["hue"].append(int(self.rng.integers(low, high)) / 180)
        return round(self.amounts["hue"][-1] * 180)

    def uniform(self, low, high):
        value = self.rng.uniform(low, high)
        kind = "brightness" if low == -32 else "hue" if low < 0 else None
        if kind is None:
            # Contrast and saturation have the same bounds, so each second draw of them stands for one.
            kind = ("contrast", "saturation")[self.factors % 2]
            self.factors += 1
        self.amounts[kind].append(value)
        return value


@pytest.mark.parametrize(("name", "colors"), COLORS.items())
def test_colors_change_alike(name, colors):
    """Within what 8-bit hues and saturations are apart: Pillow has 256 of each, OpenCV 180 hues, torchvision floats."""
    values = recorded(name)["distortion"]
    pixels = draw(values["inputs"]["pixels"]).astype(np.uint8)
    for case in values["cases"]:
        if case["kind"] not in ("hue", "saturation"):
            continue
        change = turn_hue(pixels, case["amount"]) if case["kind"] == "hue" else saturate(pixels, case["amount"], colors)
        apart = np.abs(change.astype(int) - np.array(case["pixels"]))
        assert apart.max() <= 8, case["kind"]
        assert apart.mean() <= 2, case["kind"]
