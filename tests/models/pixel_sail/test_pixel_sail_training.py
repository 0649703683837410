"""A few steps on one scene, in a loop of its own: everything learns, and what was learned is found again."""

import numpy as np
import pytest
import torch
from PIL import Image

from evals.scenes import CLASSES, draw_scene
from sail_encoder import PixelSailForCausalLM, PixelSailProcessor, SailForCausalLM, SailProcessor, load_chat
from sail_encoder.models.pixel_sail.tokens import ADDED_TOKENS

SCENE = draw_scene(7, things=1, height=112, width=112)
MASK = torch.from_numpy(SCENE.mask != CLASSES.index("background"))
QUESTION = f"Please segment the {SCENE.things[0].name} in this image."


def build(plain_sail):
    torch.manual_seed(0)
    processor = PixelSailProcessor.from_sail(str(plain_sail))
    return PixelSailForCausalLM.from_sail(str(plain_sail), processor.tokenizer, mask_channels=64), processor


def batch_of(processor):
    shown = {"type": "image", "image": Image.fromarray(SCENE.image)}
    turns = [
        {"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "It is [SEG]."},
    ]
    batch = processor.apply_chat_template(
        [turns],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"return_tensors": "pt"},
    )
    is_answer = torch.as_tensor(batch.pop("assistant_masks")).bool()
    return {**batch, "labels": batch["input_ids"].masked_fill(~is_answer, -100), "mask_labels": [MASK[None]]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, plain_sail):
    """Model, processor, losses and folder after thirty steps."""
    model, processor = build(plain_sail)
    batch, losses = batch_of(processor), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    folder = tmp_path_factory.mktemp("pixel")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, losses, folder


def test_the_loss_falls(trained):
    losses = trained[2]
    assert all(np.isfinite(losses))
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_what_was_learned_is_found(trained):
    """From the saved folder."""
    answer = load_chat(str(trained[3])).ask(QUESTION, SCENE.image)
    assert answer.replace(" ", "") == "Itis[SEG]."
    expected = MASK.numpy()
    assert (answer.masks[0] & expected).sum() / (answer.masks[0] | expected).sum() > 0.7


def test_labels_are_the_answer(trained):
    processor = trained[1]
    labels = batch_of(processor)["labels"][0]
    assert processor.decode(labels[labels != -100]).replace(" ", "") == "Itis[SEG].</s>"


def test_every_part_learns(trained):
    """Nothing is cut off from the loss, visual prompts included."""
    model, batch = trained[0], batch_of(trained[1])
    numbers = torch.full((len(batch["pixel_values"]),), -1)
    numbers[:5] = 3
    model.zero_grad()
    model(**batch, visual_prompts=numbers).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_a_sail_before_training_is_itself(plain_sail):
    """The text of questions without regions is as likely as before; only tokens are added."""
    processor = PixelSailProcessor.from_sail(str(plain_sail))
    torch.manual_seed(0)
    model = PixelSailForCausalLM.from_sail(str(plain_sail), processor.tokenizer, mask_channels=32).eval()
    sail = SailForCausalLM.from_pretrained(plain_sail, dtype=torch.float32).eval()
    ids = processor.tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    assert min(ids) >= sail.config.vocab_size
    assert model.config.vocab_size == len(processor.tokenizer) == sail.config.vocab_size + len(ADDED_TOKENS)
    assert model.config.seg_token_id == ids[0]
    assert model.config.visual_prompt_token_ids == ids[3:18]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}
    text = processor.apply_chat_template([message], tokenize=False)
    assert text == SailProcessor.from_pretrained(plain_sail).apply_chat_template([message], tokenize=False)
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), dtype=np.uint8)
    inputs = processor(images=[image], text=text, return_tensors="pt")
    with torch.no_grad():
        theirs, ours = sail(**inputs).logits, model(**inputs).logits
    assert torch.equal(theirs, ours[..., : sail.config.vocab_size])
