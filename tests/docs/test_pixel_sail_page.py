"""The training example of docs/pixel-sail.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sail_encoder import PixelSailForCausalLM, PixelSailProcessor, SailForCausalLM, SailProcessor, load_chat
from sail_encoder.io.hub import find_checkpoint
from sail_encoder.models.pixel_sail.tokens import ADDED_TOKENS

PAGE = Path(__file__).parents[2] / "docs" / "pixel-sail.md"


@pytest.fixture(scope="module")
def after_training(tmp_path_factory):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        torch.manual_seed(0)
        names = {}
        for block in reversed(blocks):
            exec(compile(block, str(PAGE), "exec"), names)
        yield names


def test_the_loss_falls(after_training):
    losses = after_training["losses"]
    assert all(np.isfinite(losses))
    assert sum(losses[-3:]) < 0.3 * sum(losses[:3])


def test_what_was_learned_is_found(after_training):
    """After so few steps on one scene, its thing is found in it, from the saved folder."""
    scene, expected = after_training["scene"], after_training["mask"].numpy()
    answer = load_chat("runs/pixel").ask(after_training["question"], scene.image)
    assert answer.replace(" ", "") == "Itis[SEG]."
    overlap = (answer.masks[0] & expected).sum() / (answer.masks[0] | expected).sum()
    assert overlap > 0.7
    text, found = after_training["find"](scene.image, scene.things[0].name)
    assert text.count("[SEG]") == len(found)


def test_labels_are_the_answer(after_training):
    labels, processor = after_training["batch"]["labels"][0], after_training["processor"]
    assert processor.decode(labels[labels != -100]).replace(" ", "") == "Itis[SEG].</s>"


def test_every_part_learns(after_training):
    """Nothing is cut off from the loss, visual prompts included."""
    model, batch, mask = (after_training[name] for name in ("model", "batch", "mask"))
    numbers = torch.full((len(batch["pixel_values"]),), -1)
    numbers[:5] = 3
    model.zero_grad()
    model(**batch, mask_labels=[mask[None]], visual_prompts=numbers).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_a_sail_before_training_is_itself():
    """The text of questions without regions is as likely as before; only tokens are added."""
    processor = PixelSailProcessor.from_sail("sail-tiny")
    torch.manual_seed(0)
    model = PixelSailForCausalLM.from_sail("sail-tiny", processor.tokenizer, mask_channels=32).eval()
    folder = find_checkpoint("sail-tiny")
    sail = SailForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = processor.tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    assert min(ids) >= sail.config.vocab_size
    assert model.config.vocab_size == len(processor.tokenizer) == sail.config.vocab_size + len(ADDED_TOKENS)
    assert model.config.seg_token_id == ids[0]
    assert model.config.visual_prompt_token_ids == ids[3:18]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}
    text = processor.apply_chat_template([message], tokenize=False)
    assert text == SailProcessor.from_pretrained(folder).apply_chat_template([message], tokenize=False)
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), dtype=np.uint8)
    inputs = processor(images=[image], text=text, return_tensors="pt")
    with torch.no_grad():
        theirs, ours = sail(**inputs).logits, model(**inputs).logits
    assert torch.equal(theirs, ours[..., : sail.config.vocab_size])
