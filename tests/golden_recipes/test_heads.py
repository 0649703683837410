"""Heads of named recipes: what they compute from recorded weights, and the weights that they start from."""

import pytest
import torch
from recipe_values import internvl_upernet, probe_settings, recipe_probe, recorded, segmentation_request, tensor

from heads.dense.linear import LinearHead
from heads.dense.upernet import UperNetHead


@pytest.mark.parametrize("name", ["ade20k_linear_dinov3", "ade20k_linear_dinov2"])
def test_linear_segmentation(name):
    values = recorded(name)["head"]
    inputs = values["inputs"]
    head = LinearHead([6], 4, **segmentation_request(name).head_options).eval()
    head.classifier.weight.data = tensor(inputs["weight"])[..., None, None]
    head.classifier.bias.data = torch.tensor(inputs["bias"], dtype=torch.float32)
    head.norm.running_mean = tensor(inputs["running_mean"])
    head.norm.running_var = tensor(inputs["running_variance"]).float()
    torch.testing.assert_close(head([tensor(inputs["maps"])]), torch.tensor(values["logits"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ade20k_linear_dinov3", "ade20k_linear_dinov2"])
def test_starting_weights_of_linear_segmentation(name):
    values = recorded(name)["starting_weights"]
    torch.manual_seed(0)
    head = LinearHead([2048], 150).requires_grad_(False)
    assert float(head.classifier.weight.std()) == pytest.approx(values["classifier_std"], rel=0.02)
    assert float(head.classifier.bias.abs().max()) == values["classifier_bias"]


def test_upernet():
    values = recorded("ade20k_upernet_internvl")["head"]
    head = internvl_upernet(values).eval().requires_grad_(False)
    maps = [tensor(one) for one in values["inputs"]["maps"]]
    levels = head.pyramid(maps)
    for level, wanted in zip(levels, values["levels"], strict=True):
        assert list(level.shape) == wanted["shape"]
        assert float(level.mean()) == pytest.approx(wanted["mean"], abs=1e-4)
        torch.testing.assert_close(level[0, 0, 0, :4], torch.tensor(wanted["first"]), atol=1e-4, rtol=0)
    for logits, wanted in (
        (head(maps), values["logits"]),
        (head.auxiliary(levels[head.auxiliary_level]), values["auxiliary_logits"]),
    ):
        assert list(logits.shape) == wanted["shape"]
        torch.testing.assert_close(logits[0, :, 0, 0], torch.tensor(wanted["first"]), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(logits[1, :, -1, -1], torch.tensor(wanted["last"]), atol=1e-3, rtol=1e-4)


def test_starting_weights_of_upernet():
    values = recorded("ade20k_upernet_internvl")["starting_weights"]
    torch.manual_seed(0)
    options = segmentation_request("ade20k_upernet_internvl").head_options
    head = UperNetHead([64] * 4, 150, **{**options, "channels": 128, "auxiliary_channels": 96})
    parameters = dict(head.requires_grad_(False).named_parameters())
    assert sorted(parameters) == sorted(one["name"] for one in values)
    for one in values:
        weight = parameters[one["name"]]
        assert list(weight.shape) == one["shape"]
        assert float(weight.std()) == pytest.approx(one["std"], rel=0.05), one["name"]
        assert float(weight.mean()) == pytest.approx(one["mean"], abs=0.05 * max(one["std"], 1e-6)), one["name"]


def test_both_pyramids_start_alike():
    """The neck of mmsegmentation's configuration, beside its own head, and the head of our training."""
    pytest.importorskip("mmseg")
    from heads.mmseg.neck import FeaturePyramidNeck

    torch.manual_seed(0)
    neck = FeaturePyramidNeck([64] * 4, "layer").pyramid.state_dict()
    torch.manual_seed(0)
    ours = UperNetHead([64] * 4, 3, channels=8, auxiliary_weight=0, pyramid_norm="layer").pyramid.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in neck.items())


def test_what_is_decayed():
    values, head = recorded("ade20k_upernet_internvl"), internvl_upernet(recorded("ade20k_upernet_internvl")["head"])
    optimizer = segmentation_request("ade20k_upernet_internvl").recipe.build_optimizer([list(head.parameters())])
    names = {id(parameter): name for name, parameter in head.named_parameters()}
    decays = {
        group["weight_decay"]: sorted(names[id(one)] for one in group["params"]) for group in optimizer.param_groups
    }
    wanted = values["weight_decay"]
    assert decays == {values["settings"]["weight_decay"]: wanted["decayed"], 0.0: wanted["not_decayed"]}


@pytest.mark.parametrize("name", ["imagenet1k-dinov3-linear", "imagenet1k-internvl-linear"])
def test_starting_weights_of_linear_probes(name):
    values, probe = recorded(name)["starting_weights"], recipe_probe(name, "linear")
    torch.manual_seed(0)
    bank = probe.build(1024, 1000, 1).requires_grad_(False)
    assert float(bank.weights[0].std()) == pytest.approx(values["std"], rel=0.02)
    assert float(bank.biases[0].abs().max()) == values["bias"]
    if "norm_eps" in values:
        assert bank.norm.eps == values["norm_eps"]
        assert bool(bank.scales)


@pytest.mark.parametrize("name", ["imagenet1k-efficient-probing", "imagenet1k-aim-attentive"])
def test_starting_weights_of_attentive_probes(name):
    values, probe = recorded(name)["starting_weights"], recipe_probe(name, "attentive")
    torch.manual_seed(0)
    bank = probe.build(values["channels"], 1000, 1).requires_grad_(False)
    pool, classifier = bank.pools[0], bank.classifiers[0]
    assert float(pool.queries.std()) == pytest.approx(values["queries"], rel=0.1)
    assert float(pool.value.weight.std()) == pytest.approx(values["value"], rel=0.02)
    if "key" in values:
        assert float(pool.key.weight.std()) == pytest.approx(values["key"], rel=0.02)
    assert float(classifier.weight.std()) == pytest.approx(values["classifier"], rel=0.02)
    assert (classifier.bias is not None) == (values["classifier_bias"] is not False)
    (norm,) = (module for module in bank.modules() if isinstance(module, torch.nn.BatchNorm1d))
    assert norm.eps == values["norm_eps"]
    assert norm.affine == values["norm_affine"]


def test_layers_of_aim():
    settings, values = probe_settings("imagenet1k-aim-attentive"), recorded("imagenet1k-aim-attentive")["settings"]
    assert settings["layers"] == ",".join(map(str, values["layers"]))
    assert settings["fuse"] == values["fuse"]
    assert settings["norm"] == values["final_norm"]
