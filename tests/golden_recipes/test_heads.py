"""Heads of named recipes: what they compute from recorded weights, and the weights that they start from."""

import pytest
import torch
from recipe_values import probe_settings, recipe_probe, recorded, segmentation_request, tensor

from heads.dense.linear import LinearHead


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
