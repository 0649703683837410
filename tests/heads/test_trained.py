"""linear, attentive and pooling: against training each alone, and against a plain computation."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from heads.attentive import AttentiveProbe
from heads.bank import shuffled_batches
from heads.contract import HeadError
from heads.linear import LinearProbe
from heads.pooling import AttentionPool, pack_patches
from heads.targets import TargetSpace

RATES = (1e-3, 1e-2, 0.1)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    return X[:600], y[:600], X[600:900], y[600:900]


@pytest.fixture(scope="module")
def grids():
    """Grids of different sizes, whose class is told by one patch alone."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 480)
    made = []
    for label in classes:
        grid = rng.normal(0, 1, (*rng.integers(2, 6, 2), 12)).astype(np.float32)
        row, column = (rng.integers(side) for side in grid.shape[:2])
        grid[row, column, :4] = 6.0 * np.eye(4)[label]
        grid[row, column, 3] = 6.0
        made.append(grid)
    return made, classes


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize(("ema", "batch_norm"), [(0.0, False), (0.9, False), (0.0, "affine")])
def test_many_learning_rates_at_once_are_each_alone(digits, optimizer, ema, batch_norm):
    X, y, more, labels = digits
    settings = {"optimizer": optimizer, "ema": ema, "weight_decay": 0.01, "warmup": 0.2, "steps": 15}
    settings["batch_norm"] = batch_norm
    together = LinearProbe(learning_rates=RATES, **settings).fit(X, y, validation=(more, labels))
    alone = [LinearProbe(learning_rates=(lr,), **settings).fit(X, y) for lr in RATES]
    accuracies = [np.mean(one.predict(more) == labels) for one in alone]
    assert [candidate.quality for candidate in together.path_] == pytest.approx(accuracies)
    best = int(np.argmax(accuracies))
    assert together.chosen_ == RATES[best]
    np.testing.assert_allclose(together.scores(more), alone[best].scores(more), rtol=1e-3, atol=1e-4)


def test_the_gradient_of_each_head_is_bounded_by_itself(digits):
    X, y, more, _ = digits
    settings = {"clip": 0.05, "steps": 15, "label_smoothing": 0.1, "schedule": "poly_mmseg"}
    together = LinearProbe(learning_rates=RATES, **settings).fit(X, y, validation=(more, digits[3]))
    alone = LinearProbe(learning_rates=together.chosen_, **settings).fit(X, y)
    np.testing.assert_allclose(together.scores(more), alone.scores(more), rtol=1e-3, atol=1e-5)
    free = LinearProbe(learning_rates=together.chosen_, **{**settings, "clip": 0.0}).fit(X, y)
    assert np.abs(free.scores(more) - alone.scores(more)).max() > 0.01


@pytest.mark.parametrize("batch_norm", [True, "affine"])
def test_heads_norm_what_they_have_pooled_by_themselves(grids, batch_norm, tmp_path):
    (X, y), settings = grids, {"norm_on": "pooled", "batch_norm": batch_norm, "steps": 20, "queries": 2}
    together = AttentiveProbe(learning_rates=(1e-3, 1e-2), **settings).fit(
        X[:300], y[:300], validation=(X[300:], y[300:])
    )
    alone = AttentiveProbe(learning_rates=together.chosen_, **settings).fit(X[:300], y[:300])
    np.testing.assert_allclose(together.scores(X[300:]), alone.scores(X[300:]), rtol=1e-3, atol=1e-4)
    together.save(tmp_path)
    np.testing.assert_array_equal(AttentiveProbe.load(tmp_path).scores(X[300:]), together.scores(X[300:]))
    on_patches = AttentiveProbe(learning_rates=together.chosen_, **{**settings, "norm_on": "patches"}).fit(
        X[:300], y[:300]
    )
    assert np.abs(on_patches.scores(X[300:]) - alone.scores(X[300:])).max() > 0.01


def test_linear_is_plain_sgd(digits):
    X, y = digits[0], digits[1]
    probe = LinearProbe(learning_rates=(0.05,), epochs=2, least_steps=1, batch_size=100, seed=3).fit(X, y)
    torch.manual_seed(3)
    plain = nn.Linear(64, 10)
    torch.manual_seed(3)
    with torch.no_grad():
        plain.weight.copy_(0.01 * torch.randn(10, 64))
        plain.bias.zero_()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05 * 100 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    for index in shuffled_batches(600, 100, 12, 3):
        optimizer.zero_grad()
        F.cross_entropy(plain(torch.from_numpy(X)[index]), torch.from_numpy(y)[index]).backward()
        optimizer.step()
        schedule.step()
    expected = plain(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(probe.scores(X), expected, atol=1e-5)


def test_lars_adapts_the_rate_of_weights_without_weight_decay(digits):
    X, y = torch.from_numpy(digits[0]), torch.from_numpy(digits[1])
    probe = LinearProbe(
        learning_rates=0.5, optimizer="lars", momentum=0.9, steps=1, batch_size=600, base_batch_size=600, seed=3
    )
    probe.fit(digits[0], digits[1])
    torch.manual_seed(3)
    weight, bias = (0.01 * torch.randn(10, 64)).requires_grad_(), torch.zeros(10, requires_grad=True)
    F.cross_entropy(X @ weight.T + bias, y).backward()
    trust = 0.001 * weight.norm() / weight.grad.norm()
    expected = X @ (weight - 0.5 * trust * weight.grad).T + bias - 0.5 * bias.grad
    np.testing.assert_allclose(probe.scores(digits[0]), expected.detach().numpy(), atol=1e-6)


def test_batch_norm_with_weights_is_that_of_torch(digits):
    X, y = digits[0], digits[1]
    probe = LinearProbe(learning_rates=0.5, batch_norm="affine", steps=20, batch_size=100, seed=3).fit(X, y)
    torch.manual_seed(3)
    weight = 0.01 * torch.randn(10, 64)
    plain = nn.Sequential(nn.BatchNorm1d(64, eps=1e-6), nn.Linear(64, 10))
    with torch.no_grad():
        plain[1].weight.copy_(weight)
        plain[1].bias.zero_()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5 * 100 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for index in shuffled_batches(600, 100, 20, 3):
        optimizer.zero_grad()
        F.cross_entropy(plain(torch.from_numpy(X)[index]), torch.from_numpy(y)[index]).backward()
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(probe.scores(X), plain.eval()(torch.from_numpy(X)).detach().numpy(), atol=1e-4)
    assert (plain[0].weight - 1).abs().max() > 0.01


def test_every_sample_comes_once_an_epoch():
    batches = list(shuffled_batches(50, 16, 25, seed=1))
    assert {len(batch) for batch in batches} == {16}
    seen = torch.cat(batches)
    assert torch.bincount(seen, minlength=50).tolist() == [8] * 50
    assert not torch.equal(batches[0], next(shuffled_batches(50, 16, 1, seed=2)))


def test_schedule_rises_and_falls():
    recipe = LinearProbe(learning_rates=0.1, warmup=0.1, steps=100).recipe
    factors = [recipe.factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)


def test_linear_reads_a_memory_map_a_batch_at_a_time(digits, tmp_path):
    X, y, more, _ = digits
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole = LinearProbe(learning_rates=RATES, steps=10).fit(X, y)
    batches = LinearProbe(learning_rates=RATES, steps=10, working_memory=1000).fit(mapped, y)
    np.testing.assert_array_equal(whole.scores(more), batches.scores(more))


def test_batch_norm_frees_from_the_scale_of_features(digits):
    X, y, more, labels = digits
    X, more = X * 1000, more * 1000
    with_norm = LinearProbe(batch_norm=True, learning_rates=(0.1,)).fit(X, y)
    assert with_norm.score(more, labels) == np.mean(with_norm.predict(more) == labels) > 0.8
    assert with_norm.classes_.tolist() == list(range(10))
    assert {"norm.running_mean", "norm.running_var"} < with_norm.tensors().keys()


def test_several_labels_and_numbers(digits):
    X, y, more, labels = digits
    several = np.stack([y % 2, y > 4], 1).astype(int)
    probe = LinearProbe(steps=100).fit(X, several)
    wanted = np.stack([labels % 2, labels > 4], 1)
    assert np.mean(probe.predict(more) == wanted) > 0.8
    numbers = X[:, 20] * 300 + 1000
    regression = LinearProbe(steps=100, task="regression").fit(X, numbers)
    assert regression.predict(more).shape == (300,)
    assert not hasattr(regression, "classes_")
    assert regression.score(more, more[:, 20] * 300 + 1000) > 0.8
    assert np.corrcoef(regression.predict(more), more[:, 20])[0, 1] > 0.9
    assert abs(regression.predict(more).mean() - (more[:, 20] * 300 + 1000).mean()) < 10


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_targets_may_be_tensors(device):
    classes, numbers = torch.tensor([2, 5, 5], device=device), torch.tensor([1.0, 3.0, 2.0], device=device)
    space = TargetSpace.of(classes, "classification")
    assert space.encode(classes).tolist() == [0, 1, 1]
    learned = TargetSpace.of(numbers.requires_grad_(), "regression")
    assert (learned.mean.tolist(), learned.encode(numbers).mean()) == ([2.0], pytest.approx(0))


def test_a_head_that_diverges_is_not_chosen(digits):
    X, y, more, _ = digits
    probe = LinearProbe(learning_rates=(0.1, 1e30), task="regression", steps=10).fit(X, y.astype(float))
    assert probe.chosen_ == 0.1
    assert np.isfinite(probe.scores(more)).all()


def plain_attention(pool, grid):
    """The pooling of one image by torch's own attention."""
    patches = torch.as_tensor(grid).flatten(0, 1)
    dim = patches.shape[1]
    if pool.key is None:
        weights = (pool.queries @ patches.T / dim**0.5).softmax(1)
        slices = pool.value(patches).chunk(len(weights), 1)
        return torch.cat([weight @ part for weight, part in zip(weights, slices, strict=True)])
    parts = pool.queries, pool.key(patches), pool.value(patches)
    by_head = (rows.unflatten(1, (pool.parts, -1)).transpose(0, 1) for rows in parts)
    pooled = F.scaled_dot_product_attention(*by_head)
    return pooled.transpose(0, 1).flatten(1).mean(0)


@pytest.mark.parametrize("settings", [(1, 1, True), (1, 4, True), (3, 2, True), (1, 1, False), (6, 1, False)])
def test_attention_pooling_against_torch(grids, settings):
    torch.manual_seed(0)
    pool = AttentionPool(12, *settings)
    with torch.no_grad():
        pool.queries.mul_(50)
    some = [torch.from_numpy(grid) for grid in grids[0][:8]]
    pooled = pool(*pack_patches(some))
    torch.testing.assert_close(pooled, torch.stack([plain_attention(pool, grid) for grid in some]))


def test_attention_pooling_does_not_overflow():
    pool = AttentionPool(4, 2, 1, False)
    pooled = pool(torch.full((3, 4), 1e4), torch.tensor([1, 2]))
    assert pooled.isfinite().all()


@pytest.mark.parametrize("settings", [{"heads": 2}, {"queries": 4, "project_keys": False}])
def test_attentive_finds_the_patch_that_matters(grids, settings):
    features, classes = grids
    probe = AttentiveProbe(learning_rates=(1e-4, 1e-2), steps=200, batch_size=32, **settings)
    probe.fit(features[:400], classes[:400], validation=(features[400:440], classes[400:440]))
    accuracy = np.mean(probe.predict(features[440:]) == classes[440:])
    means = np.stack([grid.mean((0, 1)) for grid in features])
    linear = LinearProbe(steps=300).fit(means[:400], classes[:400])
    assert accuracy > 0.8
    assert accuracy > np.mean(linear.predict(means[440:]) == classes[440:])
    assert probe.chosen_ == 1e-2


@pytest.mark.parametrize("batch_norm", [True, "affine"])
def test_attentive_with_several_rates_is_each_alone(grids, batch_norm):
    features, classes = grids
    held = features[400:], classes[400:]
    settings = {"steps": 20, "batch_size": 32, "queries": 2, "batch_norm": batch_norm}
    together = AttentiveProbe(learning_rates=(1e-3, 1e-2), **settings).fit(
        features[:400], classes[:400], validation=held
    )
    alone = [AttentiveProbe(learning_rates=(lr,), **settings).fit(features[:400], classes[:400]) for lr in (1e-3, 1e-2)]
    best = alone[(1e-3, 1e-2).index(together.chosen_)]
    np.testing.assert_allclose(together.scores(held[0]), best.scores(held[0]), rtol=1e-3, atol=1e-4)


def test_attentive_of_aim_has_no_bias_and_that_of_internvl_a_norm_with_weights(grids):
    names = {
        name: AttentiveProbe(steps=2, learning_rates=0.1, **settings).fit(*grids).tensors().keys()
        for name, settings in {"aim": {"classifier_bias": False}, "internvl": {"batch_norm": "affine"}}.items()
    }
    assert names["internvl"] - names["aim"] == {"classifiers.0.bias", "affines.0.scale", "affines.0.shift"}
    assert not names["aim"] - names["internvl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": ()}, r"learning_rates is \(\); give one positive number or several"),
        ({"learning_rates": "fast"}, "learning_rates is 'fast'; give one positive number or several"),
        ({"optimizer": "adam"}, "optimizer 'adam' is unknown"),
        ({"epochs": 0}, "epochs is 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": "32"}, "batch_size is '32'; give a positive whole number"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; give 0 or a positive number"),
        ({"clip": -1}, "clip is -1; give 0 or a positive number"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"schedule": "linear"}, "schedule 'linear' is unknown; use poly, cosine, constant, trapezoid, cosine_dinov3"),
        ({"label_loss": "median"}, "label_loss 'median' is unknown; use mean or sum"),
        ({"momentum": 0, "nesterov": True}, "nesterov looks ahead by the momentum, which is 0"),
        ({"working_memory": 0}, "working_memory is 0"),
        ({"batch_norm": "sync"}, "batch_norm is 'sync'; use true, false or affine"),
        ({"task": "ranking"}, "task 'ranking' is unknown"),
    ],
)
def test_settings_that_cannot_be(digits, settings, message):
    probe = LinearProbe(**settings)
    for found in (probe.check, lambda: probe.fit(digits[0], digits[1])):
        with pytest.raises(HeadError, match=message):
            found()


def test_a_learning_rate_alone(digits):
    X, y, more, _ = digits
    alone, listed = (LinearProbe(learning_rates=rates, steps=3).fit(X, y) for rates in (0.1, [0.1]))
    np.testing.assert_array_equal(alone.scores(more), listed.scores(more))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "queries is 0; give a positive whole number"),
        ({"heads": 1.5}, "heads is 1.5; give a positive whole number"),
        ({"heads": 2, "project_keys": False}, "without project_keys each query is a head"),
        ({"norm_on": "classes"}, "norm_on is 'classes'; use patches or pooled"),
    ],
)
def test_settings_of_attention_that_cannot_be(settings, message):
    with pytest.raises(HeadError, match=message):
        AttentiveProbe(**settings).check()


@pytest.mark.parametrize("settings", [{"heads": 5}, {"queries": 5, "project_keys": False}])
def test_channels_that_cannot_be_split(grids, settings):
    with pytest.raises(HeadError, match="cannot be split"):
        AttentiveProbe(**settings).fit(*grids)


def test_data_that_cannot_be_learned(digits, grids):
    X, y = digits[0][:30].copy(), digits[1][:30]
    with pytest.raises(HeadError, match="30 rows of features, but 20 targets"):
        LinearProbe().fit(X, y[:20])
    with pytest.raises(HeadError, match="the set is empty"):
        LinearProbe().fit(X, y, validation=(X[:0], y[:0]))
    with pytest.raises(HeadError, match=r"takes \[n, C\]"):
        LinearProbe().fit(X[:, :, None], y)
    with pytest.raises(HeadError, match=r"takes grids \[nh, nw, C\]"):
        AttentiveProbe().fit(X, y)
    with pytest.raises(HeadError, match="not fitted yet"):
        LinearProbe().predict(X)
    with pytest.raises(HeadError, match="not fitted yet; call fit before save"):
        LinearProbe().save("nowhere")
    with pytest.raises(HeadError, match="features have 10 channels, those of training 64"):
        LinearProbe(steps=1).fit(X, y, validation=(X[:, :10], y))
    with pytest.raises(HeadError, match="features have 10 channels, those of training 64"):
        LinearProbe(steps=1).fit(X, y).scores(X[:, :10])
    X[4, 2] = np.inf
    with pytest.raises(HeadError, match="row 4 of the features holds NaN or inf"):
        LinearProbe().fit(X, y)
    broken = [grids[0][0] * np.nan, *grids[0][1:]]
    with pytest.raises(HeadError, match="NaN or inf"):
        AttentiveProbe(steps=5).fit(broken, grids[1])
