import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import UperNetConfig
from transformers.models.upernet import modeling_upernet

from heads.contract import HeadError, SavedHead, save_head
from heads.dense import IGNORE
from heads.dense.linear import LinearHead
from heads.dense.loss import upsampled_cross_entropy
from heads.dense.neighbors import NeighborHead, class_shares
from heads.dense.pyramid import SimpleFeaturePyramid
from heads.dense.registry import TrainedHead, build_dense_head, load_dense_head, save_dense_head
from heads.dense.upernet import UperNetHead
from heads.dense.upsampling import CHUNK_ELEMENTS
from sail_encoder.backbones.spec import FeatureSpec

ROWS, COLUMNS, CLASSES = 3, 5, 4
SOURCE = FeatureSpec("small", (0, 2), weights="abc")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def feature_maps(*channels, n=2, rows=ROWS, columns=COLUMNS):
    return [torch.randn(n, c, rows, columns) for c in channels]


def some_labels(n=2, height=10 * ROWS, width=10 * COLUMNS, classes=CLASSES):
    labels = torch.randint(0, classes, (n, height, width), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = IGNORE
    return labels


@pytest.mark.parametrize("chunk", [1, 700, 2**26])
def test_loss_and_gradient_are_those_of_the_enlarged_logits(chunk, monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", chunk)
    logits, labels = torch.randn(3, CLASSES, ROWS, COLUMNS, requires_grad=True), some_labels(3)
    enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    expected = F.cross_entropy(enlarged, labels.long(), ignore_index=IGNORE)
    (gradient,) = torch.autograd.grad(expected, logits)
    value = upsampled_cross_entropy(logits, labels)
    (2 * value).backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(logits.grad, 2 * gradient)


def test_loss_without_labelled_pixels_is_zero():
    logits = torch.randn(2, CLASSES, ROWS, COLUMNS, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((2, 20, 20), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().sum()) == 0


def test_linear_head_evens_out_layers_of_different_scale():
    head, maps = LinearHead([6, 8], CLASSES).train(), feature_maps(6, 8)
    logits = head(maps)
    assert logits.shape == (2, CLASSES, ROWS, COLUMNS)
    torch.testing.assert_close(head([maps[0], 100 * maps[1] + 7]), logits, atol=1e-4, rtol=1e-3)
    assert abs(float(head.classifier.weight.detach().std()) - 0.01) < 0.004


def test_linear_head_is_local():
    head = LinearHead([6], CLASSES).eval()
    maps = feature_maps(6)
    moved = [maps[0].clone()]
    moved[0][:, :, 1, 3] += 1
    changed = (head(moved) - head(maps)).abs().sum(dim=(0, 1)) > 0
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 4), (4, 4)])
@pytest.mark.parametrize("layers", [1, 4])
def test_pyramid_has_four_sizes_on_any_grid(rows, columns, layers):
    pyramid = SimpleFeaturePyramid([8] * layers)
    sizes = [tuple(level.shape[2:]) for level in pyramid(feature_maps(*[8] * layers, rows=rows, columns=columns))]
    half = (-(-rows // 2), -(-columns // 2))
    assert sizes == [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), half]


def test_pyramid_of_two_layers_is_refused():
    with pytest.raises(HeadError, match="1 or 4 layers, not 2"):
        SimpleFeaturePyramid([8, 8])


def test_upernet_and_its_auxiliary_loss():
    options = {"channels": 8, "auxiliary_channels": 8, "dropout": 0.0}
    maps, labels = feature_maps(6, 6, 6, 6), some_labels()
    head = UperNetHead([6] * 4, CLASSES, auxiliary_weight=0.4, **options).train()
    main = upsampled_cross_entropy(head(maps), labels)
    auxiliary = upsampled_cross_entropy(head.auxiliary(head.pyramid(maps)[2]), labels)
    torch.testing.assert_close(head.loss(maps, labels), main + 0.4 * auxiliary)
    assert head(maps).shape == (2, CLASSES, 4 * ROWS, 4 * COLUMNS)
    assert UperNetHead([6], CLASSES, auxiliary_weight=0, **options).auxiliary is None
    with pytest.raises(HeadError, match="raise --batch_size"):
        head.loss([m[:1] for m in maps], labels[:1])


@pytest.mark.parametrize("auxiliary_level", [0, 2])
@pytest.mark.parametrize("in_channels", [[6, 7, 8, 9], [6]])
def test_upernet_has_the_weights_and_the_numbers_of_transformers(in_channels, auxiliary_level):
    """Heads that were saved while transformers' classes stood in this place load and give the same logits."""
    maps, options = feature_maps(*in_channels), {"channels": 8, "auxiliary_channels": 5, "dropout": 0.0}
    ours = UperNetHead(in_channels, CLASSES, auxiliary_level=auxiliary_level, **options)
    widths = ours.pyramid.out_channels
    config = UperNetConfig(hidden_size=8, num_labels=CLASSES, auxiliary_channels=5)
    auxiliary = modeling_upernet.UperNetFCNHead(config, widths, auxiliary_level)
    theirs = modeling_upernet.UperNetHead(config, widths), auxiliary
    for own, other in zip((ours.head, ours.auxiliary), theirs, strict=True):
        other.classifier = nn.Sequential(nn.Dropout2d(0.0), other.classifier)
        assert list(own.state_dict()) == list(other.state_dict())
        own.load_state_dict(other.state_dict())
    for training in (True, False):
        for module in (ours, *theirs):
            module.train(training)
        levels = ours.pyramid(maps)
        assert torch.equal(ours.head(levels), theirs[0](levels))
        assert torch.equal(ours.auxiliary(levels[auxiliary_level]), theirs[1](levels))


def test_classifiers_of_upernet_start_small():
    head = UperNetHead([64], 50)
    for classifier in (head.head.classifier[1], head.auxiliary.classifier[1]):
        assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        assert not classifier.bias.any()


@pytest.mark.parametrize("kind", ["linear", "upernet"])
def test_heads_learn_where_things_are(kind):
    """A feature that says which quadrant a patch is in must end up in that quadrant, on a grid that is not square."""
    quadrant = torch.arange(4).view(2, 2).repeat_interleave(2, 0).repeat_interleave(3, 1)
    maps = [F.one_hot(quadrant, 4).float().permute(2, 0, 1).expand(2, -1, -1, -1).clone()]
    labels = quadrant.repeat_interleave(10, 0).repeat_interleave(10, 1).byte().expand(2, -1, -1).clone()
    options = {"channels": 16, "auxiliary_weight": 0} if kind == "upernet" else {}
    head = build_dense_head(kind, [4], 4, **options).train()
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(maps, labels).backward()
        optimizer.step()
    predicted = F.interpolate(head.eval()(maps), labels.shape[1:], mode="bilinear").argmax(1)
    assert float((predicted == labels).float().mean()) > 0.93


def test_class_shares_are_those_of_a_loop():
    labels = some_labels(2, 31, 47)
    shares, counted = class_shares(labels, (ROWS, COLUMNS), CLASSES)
    row, column = np.arange(31) * ROWS // 31, np.arange(47) * COLUMNS // 47
    for n, r, c in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        cell = labels[n].numpy()[np.ix_(row == r, column == c)]
        valid = cell[cell != IGNORE]
        index = (n * ROWS + r) * COLUMNS + c
        np.testing.assert_allclose(shares[index], np.bincount(valid, minlength=CLASSES) / valid.size, rtol=1e-6)
        assert float(counted[index]) == pytest.approx(valid.size / cell.size)


def test_neighbors_recall_what_they_have_seen():
    head = NeighborHead([16], CLASSES, neighbors=1, bank=1000).eval()
    maps = feature_maps(16, n=4)
    classes = torch.randint(0, CLASSES, (4, ROWS, COLUMNS))
    labels = classes.repeat_interleave(10, 1).repeat_interleave(10, 2).byte()
    labels[0, :10, :10] = IGNORE
    head.fit([([maps[0][:2]], labels[:2]), ([maps[0][2:]], labels[2:])], count=2)
    assert len(head.features) == head.settings["bank"] == 4 * ROWS * COLUMNS - 1
    right = head([3 * maps[0]]).argmax(1) == classes
    assert right.flatten()[1:].all()
    assert head([maps[0]]).shape == (4, CLASSES, ROWS, COLUMNS)


def test_neighbors_draw_evenly_from_all_batches():
    batches = [
        ([torch.full((1, 2, 4, 4), float(i + 1))], torch.full((1, 8, 8), i, dtype=torch.uint8)) for i in range(4)
    ]
    head = NeighborHead([2], 4, bank=10)
    head.fit(batches, count=4)
    assert head.shares.sum(0).tolist() == [2, 3, 2, 3]


def test_neighbors_without_labels_are_told():
    with pytest.raises(HeadError, match="no patch of the training images is labelled"):
        NeighborHead([2], 4).fit([(feature_maps(2), torch.full((2, 30, 50), IGNORE, dtype=torch.uint8))], count=1)


@pytest.mark.parametrize(
    ("kind", "options"), [("linear", {"dropout": 0.1}), ("upernet", {"channels": 8}), ("knn", {"bank": 9})]
)
def test_a_saved_head_gives_the_same_logits(kind, options, tmp_path):
    head, maps = build_dense_head(kind, [6], CLASSES, **options), feature_maps(6)
    if kind == "knn":
        head.fit([(maps, some_labels())], count=1)
    else:
        head.train().loss(maps, some_labels())
    expected = head.eval()(maps)
    save_dense_head(tmp_path, TrainedHead(kind, head, SOURCE, list("abcd"), "cached", (28, 42), (14, 14)))
    loaded = load_dense_head(tmp_path)
    assert (loaded.kind, loaded.source, loaded.classes) == (kind, SOURCE, list("abcd"))
    assert (loaded.mode, loaded.window, loaded.stride) == ("cached", (28, 42), (14, 14))
    torch.testing.assert_close(loaded.head(maps), expected)


def test_weights_that_do_not_fit_are_told(tmp_path):
    save_dense_head(tmp_path, TrainedHead("linear", build_dense_head("linear", [6], CLASSES), SOURCE, list("abcd")))
    description = json.loads((tmp_path / "head.json").read_text())
    description["settings"]["in_channels"] = [8]
    (tmp_path / "head.json").write_text(json.dumps(description))
    with pytest.raises(HeadError, match="do not fit its settings; train it again"):
        load_dense_head(tmp_path)


def test_unknown_heads_and_options_name_what_there_is(tmp_path):
    with pytest.raises(HeadError, match="no head 'lineer'; there is linear, upernet, knn"):
        build_dense_head("lineer", [6], 2)
    with pytest.raises(HeadError, match="the linear head has no option 'width'; it has dropout"):
        build_dense_head("linear", [6], 2, width=3)
    with pytest.raises(HeadError, match=r"linear head cannot be built with {'dropout': 3}: dropout probability"):
        build_dense_head("linear", [6], 2, dropout=3)
    with pytest.raises(HeadError, match="neighbors is 0; give a positive whole number"):
        build_dense_head("knn", [6], 2, neighbors=0)
    save_head(tmp_path, SavedHead("ridge", {}, None, {"w": torch.zeros(1)}))
    with pytest.raises(HeadError, match="of kind 'ridge'"):
        load_dense_head(tmp_path)
