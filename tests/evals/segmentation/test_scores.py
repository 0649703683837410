import json
import math

import numpy as np
import pytest
import torch

from evals.segmentation.scores import ConfusionMatrix, format_scores
from heads.dense import IGNORE

CLASSES = 7
ABSENT, UNSEEN, NEVER_PREDICTED = 2, 4, 5


def random_masks(seed):
    """Images with ignored pixels, a class that is nowhere, one that is only predicted and one that never is."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        size = rng.integers(10, 40, 2)
        labels = rng.choice([c for c in range(CLASSES) if c not in (ABSENT, UNSEEN)], size)
        wrong = rng.choice([c for c in range(CLASSES) if c not in (ABSENT, NEVER_PREDICTED)], size)
        predicted = np.where((rng.random(size) < 0.6) & (labels != NEVER_PREDICTED), labels, wrong)
        labels[rng.random(size) < 0.2] = IGNORE
        yield torch.from_numpy(predicted.astype(np.uint8)), torch.from_numpy(labels.astype(np.uint8))


def our_scores(seed):
    matrix = ConfusionMatrix(CLASSES)
    for predicted, labels in random_masks(seed):
        matrix.add(predicted, labels)
    return matrix.scores()


def test_an_image_has_the_score_that_it_has_alone():
    whole = ConfusionMatrix(CLASSES)
    for predicted, labels in random_masks(3):
        alone = ConfusionMatrix(CLASSES)
        alone.add(predicted, labels)
        assert float(whole.add(predicted, labels)) == pytest.approx(alone.scores().mean_iou)
    assert math.isnan(whole.add(torch.zeros(3, 3), torch.full((3, 3), IGNORE)))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_mmsegmentation(seed):
    metric = pytest.importorskip("mmseg.evaluation").IoUMetric
    areas = [metric.intersect_and_union(p, t, CLASSES, IGNORE) for p, t in random_masks(seed)]
    theirs = metric.total_area_to_metrics(*map(sum, zip(*areas, strict=True)))
    ours = our_scores(seed)
    np.testing.assert_allclose(ours.iou, theirs["IoU"], rtol=1e-6)
    np.testing.assert_allclose(ours.accuracy, theirs["Acc"], rtol=1e-6)
    assert ours.pixel_accuracy == pytest.approx(float(theirs["aAcc"]))
    assert ours.mean_iou == pytest.approx(np.nanmean(theirs["IoU"]), rel=1e-6)
    assert ours.mean_accuracy == pytest.approx(np.nanmean(theirs["Acc"]), rel=1e-6)
    assert math.isnan(ours.iou[ABSENT])
    assert ours.iou[UNSEEN] == 0
    assert math.isnan(ours.accuracy[UNSEEN])


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_torchmetrics(seed):
    from torchmetrics import classification

    options = {"num_classes": CLASSES, "ignore_index": IGNORE}
    per_class = classification.MulticlassJaccardIndex(average="none", **options)
    mean = classification.MulticlassJaccardIndex(average="macro", **options)
    pixels = classification.MulticlassAccuracy(average="micro", **options)
    for predicted, labels in random_masks(seed):
        for metric in (per_class, mean, pixels):
            metric.update(predicted.flatten().long(), labels.flatten().long())
    ours = our_scores(seed)
    present = [c for c in range(CLASSES) if c != ABSENT]
    np.testing.assert_allclose(np.array(ours.iou)[present], per_class.compute()[present], rtol=1e-6)
    assert ours.mean_iou == pytest.approx(float(mean.compute()), rel=1e-6)
    assert ours.pixel_accuracy == pytest.approx(float(pixels.compute()), rel=1e-6)


def test_scores_as_json_and_as_a_table():
    names = [f"class {index}" for index in range(CLASSES)]
    scores = our_scores(0).as_dict(names)
    json.dumps(scores, allow_nan=False)
    assert scores["classes"]["class 2"] == {"IoU": None, "Acc": None}
    lines = format_scores(scores).splitlines()
    assert lines[0].startswith(f"mIoU {100 * scores['mIoU']:.2f} mAcc ")
    assert lines[5].split() == ["class", "2", "-", "-"]
    assert len(lines) == 3 + CLASSES
