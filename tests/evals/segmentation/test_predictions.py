"""Pictures of label maps, confusion matrices and IoU."""

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from evals.plots import plot_confusion, plot_curves, plot_iou
from evals.results import Result
from evals.scenes import CLASSES, draw_scene
from evals.segmentation.labels import palette
from evals.segmentation.predictions import overlay, save_comparisons
from heads.dense import IGNORE


def test_the_color_of_an_overlay_is_that_of_the_legend(tmp_path):
    names = ("background", "sky", "tree")
    labels = np.zeros((60, 90), np.uint8)
    labels[20:40, 10:40], labels[20:40, 50:80], labels[50:] = 1, 2, IGNORE
    plain = Image.new("RGB", (90, 60), (120, 120, 120))
    painted = np.asarray(overlay(plain, labels, names))
    for index in (1, 2):
        assert (painted[labels == index] == palette(names)[index]).all()
    assert (painted[(labels == 0) | (labels == IGNORE)] == 120).all(), "background is clear"
    photo = Image.fromarray(noise(60, 90) // 3 + 80)
    seen = np.asarray(overlay(photo, labels, names))
    assert (seen[labels == 0] == np.asarray(photo)[labels == 0]).all()
    save_comparisons([("", plain, labels, np.where(labels == 2, 0, labels))], names, tmp_path / "a.png")
    page = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    swatches = page[-45:-22, :200].reshape(-1, 3)
    for index in (1, 2):
        assert (swatches == palette(names)[index]).all(-1).sum() > 300
        assert (page[:-60] == palette(names)[index]).all(-1).sum() > 5000


def test_without_a_background_every_class_is_painted():
    labels = np.zeros((20, 20), np.uint8)
    painted = np.asarray(overlay(Image.new("RGB", (20, 20), (9, 9, 9)), labels, ("sky", "tree")))
    assert (painted == palette(("sky", "tree"))[0]).all()


def test_the_legend_names_only_what_is_there(tmp_path):
    scene = draw_scene(3, things=2)
    save_comparisons([("", Image.fromarray(scene.image), scene.mask, scene.mask)], CLASSES, tmp_path / "scene.png")
    page = np.asarray(Image.open(tmp_path / "scene.png").convert("RGB"))
    present = set(np.unique(scene.mask)) - {0}
    swatches = page[-45:-22]
    drawn = {index for index in range(1, len(CLASSES)) if (swatches == palette(CLASSES)[index]).all(-1).sum() > 300}
    assert drawn == present


def test_a_curve_of_one_point_says_its_value():
    lines = [{"step": step, "loss": 1 / step, "learning_rate": 0.1} for step in (10, 20, 30)]
    lines.append({"step": 30, "loss": None})
    losses, rates, scores = plot_curves([*lines, {"step": 30, "mIoU": 0.8331}]).axes
    assert list(losses.lines[0].get_xdata()) == [10, 20, 30]
    assert list(losses.lines[0].get_ydata()) == [1 / 10, 1 / 20, 1 / 30]
    assert [axes.get_xlim() for axes in (losses, rates, scores)] == [(0, pytest.approx(31.8))] * 3
    assert scores.get_title() == "mIoU in percent"
    assert [text.get_text() for text in scores.texts] == ["83.3"]
    assert scores.get_ylim() == (0, 100)
    losses, rates = plot_curves([{"step": 10, "loss": -2.0, "learning_rate": 0.0}]).axes
    assert [axes.get_ylim() for axes in (losses, rates)] == [(0, 4), (0, 1)]


def test_iou_bars_are_sorted_and_labelled():
    figure = plot_iou("head", {"cat": 0.5, "dog": 0.25, "cow": None, "sky": 0.9})
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "cat", "sky"]
    assert [bar.get_width() for bar in axes.patches] == [25, 50, 90]
    assert {"25.0", "50.0", "90.0", "mIoU 55.0"} <= {text.get_text() for text in axes.texts}


def test_without_any_iou_there_is_no_mean():
    [axes] = plot_iou("nothing", {"cow": None}).axes
    assert not axes.patches
    assert not axes.texts


def test_a_confusion_matrix_has_its_counts():
    result = Result("f", "knn", 0, "accuracy", {}, "k", 1.0, [(1.0, 0.5)], [[1200, 3], [0, 7]], ["cat", "dog"])
    texts = {text.get_position(): text.get_text() for text in plot_confusion(result).axes[0].texts}
    assert texts == {(0, 0): "1,200", (1, 0): "3", (0, 1): "0", (1, 1): "7"}
