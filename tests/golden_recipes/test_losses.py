"""The first loss of named recipes on a recorded batch, and their first steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recipe_values import draw, internvl_upernet, recipe_probe, recorded, segmentation_request, tensor

from evals.segmentation.training import batch_loss
from heads.bank import loss_of
from heads.dense.linear import LinearHead
from heads.trainer import Trainer

MANY_STEPS = 10**7
"""So many that the rate of a cosine is the same in the first few."""


def first_loss(head, request, maps, labels):
    """The loss of the first step of a training."""
    batch = [tensor(one) for one in maps], torch.from_numpy(draw(labels).astype(np.uint8))
    trainer = Trainer(head, request.recipe, lambda head, batch: batch_loss(head, batch, request.loss_over))
    return float(trainer.train_step(batch))


def trainer_of(bank, recipe, smoothing=0.0):
    """What trains a bank by features and classes."""

    def loss(bank, batch):
        return loss_of(bank(batch[0]), batch[1], "classification", smoothing).sum()

    return Trainer(bank, recipe, loss, heads=bank.head_parameters())


@pytest.mark.parametrize("name", ["ade20k_linear_dinov3", "ade20k_linear_dinov2"])
def test_linear_segmentation(name):
    values, request = recorded(name)["loss"], segmentation_request(name)
    inputs, head = values["inputs"], LinearHead([6], 4)
    head.classifier.weight.data = tensor(inputs["weight"])[..., None, None]
    found = first_loss(head, request, [inputs["maps"]], inputs["labels"])
    assert found == pytest.approx(values["value"], rel=1e-5)
    ours = first_loss(head, replace(request, loss_over="labelled"), [inputs["maps"]], inputs["labels"])
    assert ours == pytest.approx(values["value"] / values["labelled_share"], rel=1e-3)


def test_upernet():
    values, options = recorded("ade20k_upernet_internvl"), segmentation_request("ade20k_upernet_internvl")
    head, maps, wanted = internvl_upernet(values["head"]), values["head"]["inputs"]["maps"], values["loss"]
    assert first_loss(head, options, maps, wanted["labels"]) == pytest.approx(wanted["total"], rel=1e-5)
    head.auxiliary_weight = 0
    assert first_loss(head, options, maps, wanted["labels"]) == pytest.approx(wanted["head"], rel=1e-5)


def dinov3_bank(values, **changes):
    """The bank of DINOv3's linear probe with the recorded weights, and the recorded features and labels."""
    inputs = values["loss"]["inputs"]
    probe = recipe_probe("imagenet1k-dinov3-linear", "linear", **changes)
    bank = probe.build(12, 5, len(probe.recipe.learning_rates))
    for weight, bias in zip(bank.weights, bank.biases, strict=True):
        weight.data, bias.data = tensor(inputs["weight"]), tensor(inputs["bias"])
    features = torch.cat((tensor(inputs["class_token"]), tensor(inputs["patches"]).mean(1)), 1)
    return probe.recipe, bank, features, tensor(inputs["labels"])


def test_linear_probe_of_dinov3():
    values = recorded("imagenet1k-dinov3-linear")
    _, bank, features, labels = dinov3_bank(values)
    scores = bank(features)
    assert len(scores) == 13
    torch.testing.assert_close(scores[-1], torch.tensor(values["loss"]["logits"]), atol=1e-5, rtol=0)
    losses = loss_of(scores, labels, "classification")
    assert losses.tolist() == pytest.approx([values["loss"]["value"]] * 13, rel=1e-5)


def test_steps_of_the_linear_probe_of_dinov3():
    values = recorded("imagenet1k-dinov3-linear")
    recipe, bank, features, labels = dinov3_bank(values)
    trainer = trainer_of(bank, recipe)
    for _ in range(3):
        trainer.train_step((features, labels))
    torch.testing.assert_close(bank.weights[-1], torch.tensor(values["three_steps"]["weight"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(bank.biases[-1], torch.tensor(values["three_steps"]["bias"]), atol=1e-5, rtol=0)


def test_several_labels():
    """A mean over the labels, as DINOv3 has it; the sum is a setting of ours."""
    values, probe = (
        recorded("imagenet1k-dinov3-linear")["multilabel_loss"],
        recipe_probe("imagenet1k-dinov3-linear", "linear"),
    )
    scores, labels = tensor(values["inputs"]["logits"])[None], tensor(values["inputs"]["labels"])
    found = loss_of(scores, labels, "multilabel", label_loss=probe.label_loss)
    assert found.tolist() == pytest.approx([values["value"]], rel=1e-5)
    added = loss_of(scores, labels, "multilabel", label_loss="sum")
    assert added.tolist() == pytest.approx([5 * values["value"]], rel=1e-5)


def internvl_bank(values):
    """The bank of InternVL's linear probe with the recorded weights, and the recorded features and labels."""
    inputs, probe = values["loss"]["inputs"], recipe_probe("imagenet1k-internvl-linear", "linear")
    bank = probe.build(16, 5, 1)
    for name in ("weight", "bias", "scale", "shift"):
        kind = {"weight": bank.weights, "bias": bank.biases, "scale": bank.scales, "shift": bank.shifts}[name]
        kind[0].data = tensor(inputs[name])
    return probe, bank, tensor(inputs["features"]), tensor(inputs["labels"])


def test_linear_probe_of_internvl():
    values = recorded("imagenet1k-internvl-linear")
    probe, bank, features, labels = internvl_bank(values)
    scores = bank.train()(features)
    torch.testing.assert_close(scores[0], torch.tensor(values["loss"]["logits"]), atol=1e-5, rtol=0)
    smoothed = loss_of(scores, labels, "classification", probe.label_smoothing)
    assert smoothed.tolist() == pytest.approx([values["loss"]["value"]], rel=1e-5)


def test_steps_and_moving_average_of_the_linear_probe_of_internvl():
    values = recorded("imagenet1k-internvl-linear")
    probe, bank, features, labels = internvl_bank(values)
    wanted = values["three_steps"]
    recipe = replace(probe.recipe, clip=wanted["clip"], schedule="cosine", warmup=0.0, steps=MANY_STEPS)
    trainer = trainer_of(bank.train(), recipe, probe.label_smoothing)
    for _ in range(3):
        trainer.train_step((features, labels))
    found = {"weight": bank.weights, "bias": bank.biases, "scale": bank.scales, "shift": bank.shifts}
    for name, parameters in found.items():
        torch.testing.assert_close(parameters[0], torch.tensor(wanted[name]), atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(bank.norm.running_mean, torch.tensor(wanted["running_mean"]), atol=1e-5, rtol=0)
    averaged = trainer.finish()
    torch.testing.assert_close(averaged.weights[0], torch.tensor(wanted["average"]["weight"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(averaged.norm.running_mean, torch.tensor(wanted["average"]["running_mean"]))


def attentive_bank(values, name, **changes):
    """The bank of a recipe's attentive probe with the recorded weights."""
    probe = recipe_probe(name, "attentive", **changes)
    weights = {key: tensor(spec) for key, spec in values["head"]["inputs"]["weights"].items()}
    bank = probe.build(weights["classifiers.0.weight"].shape[1], 5, len(probe.recipe.learning_rates))
    for key, weight in weights.items():
        part, _, rest = key.partition(".0.")
        for head in getattr(bank, part):
            head.get_parameter(rest).data = weight.clone()
    return probe.recipe, bank


def packed(patches):
    """Images of one size as attentive banks take them."""
    return patches.flatten(0, 1), torch.full((len(patches),), patches.shape[1])


def test_efficient_probing():
    values = recorded("imagenet1k-efficient-probing")
    head, inputs = values["head"], values["head"]["inputs"]
    _, bank = attentive_bank(values, "imagenet1k-efficient-probing", queries=inputs["queries"])
    batch, labels = packed(tensor(inputs["patches"])), tensor(inputs["labels"])
    pooled = bank.pools[0](*batch)
    torch.testing.assert_close(pooled, torch.tensor(head["pooled"]), atol=1e-5, rtol=0)
    scores = bank.train()(batch)
    torch.testing.assert_close(scores[0], torch.tensor(head["training_logits"]), atol=1e-5, rtol=0)
    assert loss_of(scores, labels, "classification").tolist() == pytest.approx([head["loss"]], rel=1e-5)
    torch.testing.assert_close(bank.eval()(batch)[0], torch.tensor(head["evaluation_logits"]), atol=1e-5, rtol=0)


def test_steps_of_efficient_probing():
    values = recorded("imagenet1k-efficient-probing")
    inputs, wanted = values["head"]["inputs"], values["three_steps"]
    recipe, bank = attentive_bank(values, "imagenet1k-efficient-probing", queries=inputs["queries"])
    changes = {"learning_rates": (wanted["rate"],), "base_batch_size": None, "schedule": "cosine", "warmup": 0.0}
    trainer = trainer_of(bank, replace(recipe, steps=MANY_STEPS, **changes))
    # The recorded steps follow a pass in training mode, whose statistics the loss does not depend on.
    for _ in range(3):
        trainer.train_step((packed(tensor(inputs["patches"])), tensor(inputs["labels"])))
    state = bank.state_dict()
    for name, weight in wanted["weights"].items():
        torch.testing.assert_close(state[name], torch.tensor(weight), atol=1e-5, rtol=0, msg=name)


def test_attentive_probe_of_aim():
    values = recorded("imagenet1k-aim-attentive")
    head, inputs = values["head"], values["head"]["inputs"]
    _, bank = attentive_bank(values, "imagenet1k-aim-attentive", heads=inputs["heads"])
    batch = packed(torch.stack([tensor(layer) for layer in inputs["layers"]]).mean(0))
    scores = bank.train()(batch)
    assert len(scores) == 7
    for one in scores:
        torch.testing.assert_close(one, torch.tensor(head["training_logits"]), atol=1e-5, rtol=0)
    losses = loss_of(scores, tensor(inputs["labels"]), "classification")
    assert losses.tolist() == pytest.approx([head["loss"]] * 7, rel=1e-5)
    # Banks of seven heads share one batch norm, which sees the batch once.
    torch.testing.assert_close(bank.norm.running_mean, torch.tensor(head["running_mean"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(bank.eval()(batch)[0], torch.tensor(head["evaluation_logits"]), atol=1e-5, rtol=0)
