"""Learning rates over time, optimizers, and settings that are not possible."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR, PolynomialLR, SequentialLR

from heads.contract import HeadError
from heads.recipe import Recipe
from heads.schedules import WARMUP_START
from heads.trainer import Trainer


def trained_at(recipe, steps):
    """The learning rate that each step of a training has seen."""
    trainer = Trainer(nn.Linear(2, 2), recipe, lambda model, batch: model(batch).sum())
    rates = []
    for _ in range(steps):
        trainer.train_step(torch.ones(2))
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    return rates


def test_learning_rates_are_those_of_mmsegmentation():
    """LinearLR over the warm-up, then PolyLR of power 1 to the end; or half a cosine."""
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    parts = [LinearLR(theirs, WARMUP_START, total_iters=10), PolynomialLR(theirs, 90)]
    reference = SequentialLR(theirs, parts, [10])
    expected = []
    for _ in range(100):
        expected.append(theirs.param_groups[0]["lr"])
        theirs.step()
        reference.step()
    settings = {"steps": 100, "batch_size": 1, "warmup": 10, "warmup_start": WARMUP_START}
    recipe = Recipe((0.5,), **settings, schedule="poly")
    assert trained_at(recipe, 100) == pytest.approx(expected, abs=1e-7)
    cosine = Recipe((0.5,), **settings, schedule="cosine")
    assert [cosine.factor(step) for step in (10, 55, 100)] == pytest.approx([1, 0.5, 0])
    assert Recipe((0.5,), **settings, schedule="constant").factor(99) == 1


def test_a_trapezoid_rises_stays_and_falls():
    recipe = Recipe((1.0,), steps=100, warmup=10, schedule="trapezoid")
    assert [recipe.factor(step) for step in (0, 4, 9, 60, 80, 100)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.01])


def test_a_warm_up_is_a_share_or_a_number_of_steps():
    share, number = (Recipe((1.0,), steps=40, warmup=warmup) for warmup in (0.25, 10))
    assert [share.factor(step) for step in range(40)] == [number.factor(step) for step in range(40)]
    assert share.factor(9) == 1


def test_epochs_become_steps_of_a_training_set():
    recipe = Recipe((1.0,), epochs=3, batch_size=100)
    assert recipe.for_samples(1000).steps == 30
    small = Recipe((1.0,), epochs=3, least_steps=50, batch_size=100).for_samples(20)
    assert (small.steps, small.batch_size) == (50, 20)
    assert Recipe((1.0,), epochs=3, steps=7).for_samples(1000).steps == 7
    with pytest.raises(HeadError, match="counts epochs, so its steps depend on the training set; call for_samples"):
        recipe.factor(0)


def test_learning_rates_grow_with_the_batch_and_norms_are_spared_weight_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    recipe = Recipe((0.1,), batch_size=512, base_batch_size=256, weight_decay=0.3, decay_norms=False)
    weights, others = recipe.build_optimizer([list(model.parameters())]).param_groups
    assert (weights["lr"], others["lr"]) == (0.2, 0.2)
    assert (weights["weight_decay"], len(weights["params"])) == (0.3, 1)
    assert (others["weight_decay"], len(others["params"])) == (0.0, 3)
    both = Recipe((0.1,), weight_decay=0.3).build_optimizer([list(model.parameters())])
    assert {group["weight_decay"] for group in both.param_groups} == {0.3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rates": ()}, r"learning_rates is \(\); give one positive number or several"),
        ({"learning_rates": (0.0,)}, r"learning_rates is \(0.0,\); give"),
        ({"steps": 0}, "steps is 0; give a positive whole number"),
        ({"batch_size": 0}, "batch_size is 0; give a positive whole number"),
        ({"base_batch_size": 0}, "base_batch_size is 0; give a positive number"),
        ({"warmup": 10}, "warmup is 10; allowed is less than the 10 steps of the training"),
        ({"warmup": 1.5}, "warmup is 1.5; give a share of the steps below 1, or a whole number of steps"),
        ({"warmup": -1}, "warmup is -1; give 0 or a positive number"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; give 0 or a positive number"),
        ({"schedule": "steps"}, "schedule 'steps' is unknown; use poly, cosine, constant, trapezoid, .* or poly_mmseg"),
        ({"optimizer": "adam"}, "optimizer 'adam' is unknown; use adamw, sgd or lars"),
        ({"ema": 1.0}, "ema is 1.0; allowed is 0 up to, but not, 1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov looks ahead by the momentum, which is 0"),
    ],
)
def test_recipes_that_are_not_possible(change, message):
    with pytest.raises(HeadError, match=message) as caught:
        Recipe(**{"learning_rates": (1.0,), "steps": 10, **change})
    assert "\n" not in str(caught.value)
