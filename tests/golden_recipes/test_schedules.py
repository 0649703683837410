"""The learning rate of each named recipe at recorded steps: first, last, in between and around the warm-up's end."""

import pytest
import torch
from recipe_values import ROOT, probe_settings, recipe_probe, recorded, segmentation_request
from torch import nn

from heads.trainer import Trainer

IMAGENET = 1_281_167
SEGMENTATION = ("ade20k_linear_dinov2", "ade20k_linear_dinov3", "ade20k_upernet_internvl")
LIKE_ADE20K = ("voc2012_linear_dinov2", "cityscapes_linear_dinov2")
"""The recipe that DINOv2's paper names for these, of which no configuration could be run."""


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(name):
    values, recipe = recorded(name)["schedule"], segmentation_request(name).recipe
    assert recipe.steps == values["steps"]
    assert recipe.warmup == values["warmup"]
    (highest,) = recipe.learning_rates
    rates = [highest * recipe.factor(step) for step, _ in values["rates"]]
    assert rates == pytest.approx([rate for _, rate in values["rates"]], rel=1e-9, abs=1e-15)
    total = sum(map(recipe.factor, range(recipe.steps)))
    assert highest * total == pytest.approx(values["sum"], rel=1e-9)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_the_optimizer_of_segmentation_sees_these_rates(name):
    values, recipe = dict(recorded(name)["schedule"]["rates"]), segmentation_request(name).recipe
    trainer = Trainer(nn.Linear(2, 2), recipe, lambda model, batch: model(batch).sum())
    groups = trainer.optimizers[0].param_groups
    for step in range(3):
        trainer.train_step(torch.ones(2))
        assert [group["lr"] for group in groups] == pytest.approx([values[step]] * len(groups), rel=1e-9)


@pytest.mark.parametrize("name", LIKE_ADE20K)
def test_dinov2_trains_on_other_data_as_on_ade20k(name):
    assert segmentation_request(name).recipe == segmentation_request("ade20k_linear_dinov2").recipe
    assert segmentation_request(name).loss_over == segmentation_request("ade20k_linear_dinov2").loss_over


@pytest.mark.parametrize("name", SEGMENTATION)
def test_settings_of_segmentation(name):
    request, settings = segmentation_request(name), recorded(name)["settings"]
    assert request.batch_size == settings["batch_size"]
    assert request.learning_rate == pytest.approx(settings["learning_rate"])
    assert request.weight_decay == pytest.approx(settings["weight_decay"])
    assert request.stride == settings["stride"]
    assert list(request.jitter) == settings.get("jitter", [0.5, 2.0])
    options = request.head_options
    if "channels" in settings:
        assert options["channels"] == settings["channels"]
        assert options["auxiliary_channels"] == settings["auxiliary_channels"]
        assert options["auxiliary_level"] == settings["auxiliary_level"]
    else:
        assert options["dropout"] == settings["dropout"]
    assert request.norm == settings.get("final_norm", True)


PROBES = (
    ("imagenet1k-dinov3-linear", "linear"),
    ("imagenet1k-internvl-linear", "linear"),
    ("imagenet1k-efficient-probing", "attentive"),
)


@pytest.mark.parametrize(("name", "kind"), PROBES)
def test_probes(name, kind):
    values, recipe = recorded(name)["schedule"], recipe_probe(name, kind).recipe.for_samples(IMAGENET)
    assert recipe.steps == values["steps"]
    highest = max(recipe.learning_rates) * recipe.batch_size / recipe.base_batch_size
    rates = [highest * recipe.factor(step) for step, _ in values["rates"]]
    assert rates == pytest.approx([rate for _, rate in values["rates"]], rel=1e-9, abs=1e-15)
    assert highest * sum(map(recipe.factor, range(recipe.steps))) == pytest.approx(values["sum"], rel=1e-9)


def test_the_grid_of_dinov3_is_scaled_by_the_batch():
    values, probe = recorded("imagenet1k-dinov3-linear"), recipe_probe("imagenet1k-dinov3-linear", "linear")
    torch.manual_seed(0)
    bank = probe.build(6, 5, len(probe.recipe.learning_rates))
    optimizer = probe.recipe.build_optimizer(bank.head_parameters())
    rates = [group["lr"] for group in optimizer.param_groups if group["params"][0].ndim == 2]
    assert rates == pytest.approx(values["schedule"]["peaks"])
    assert list(probe.recipe.learning_rates) == pytest.approx(values["settings"]["learning_rates"])


@pytest.mark.parametrize(("name", "kind"), PROBES)
def test_settings_of_probes(name, kind):
    settings, probe = recorded(name)["settings"], recipe_probe(name, kind)
    recipe = probe.recipe
    assert recipe.batch_size == settings["batch_size"]
    assert recipe.optimizer == settings["optimizer"]
    assert recipe.momentum == settings["momentum"]
    assert recipe.weight_decay == settings["weight_decay"]
    for setting in ("nesterov", "label_smoothing", "clip", "ema"):
        if setting in settings:
            assert getattr(probe, setting) == settings[setting]
    assert probe_settings(name).get("norm", True) == settings.get("final_norm", True)


@pytest.mark.parametrize(
    ("config", "name", "apart"),
    [
        ("upernet_ade20k", "ade20k_upernet_internvl", {"rel": 1e-3, "abs": 1e-9}),
        ("linear_ade20k", "ade20k_linear_dinov3", {"rel": 0.04, "abs": 1e-6}),
    ],
)
def test_mmsegmentation(config, name, apart):
    """The decay begins at the first step there too.

    mmengine's warm-up is one step shorter, so that its last rates are those of a step later (1e-9 less), and under its
    warm-up DINOv3's decay is a line where this is a cosine.
    """
    Config = pytest.importorskip("mmengine").Config
    from mmengine.optim import scheduler

    content = Config.fromfile(ROOT / f"configs/mmseg/{config}.py")
    values = recorded(name)["schedule"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], content.optim_wrapper.optimizer.lr)
    schedules = []
    for settings in content.param_scheduler:
        arguments = {key: value for key, value in settings.items() if key != "type"}
        schedules.append(getattr(scheduler, settings["type"])(optimizer, **arguments))
    wanted, last = dict(values["rates"]), values["steps"] - 1
    for step in range(values["steps"]):
        if step in wanted and step not in (0, last):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted[step], **apart)
        optimizer.step()
        for one in schedules:
            one.step()
