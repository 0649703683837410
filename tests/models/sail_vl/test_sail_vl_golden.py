"""Towers, projector, logits, answers and prompts are those of the published code."""

import PIL
import pytest
import torch
from packaging.version import Version
from sail_vl_golden import golden_set
from torch.testing import assert_close

from sail_encoder.models.sail_vl.prompts import expand_images, prepend_images

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_blocks_and_final_norm_of_the_tower(golden, model):
    recorded = golden.tensors()
    out = model.vision_model(recorded["tiles"], output_hidden_states=True)
    states = torch.stack(out.hidden_states)
    blocks = recorded["vit_hidden_states"]
    assert len(states) == model.config.vision_config.num_hidden_layers + 1
    # Of SAILViT the published code does not return the embedding.
    assert_close(states[-len(blocks) :], blocks, **CLOSE)
    assert_close(out.last_hidden_state, recorded["vit_last_hidden_state"], **CLOSE)


def test_projected_tokens(golden, model):
    recorded = golden.tensors()
    features = model.get_image_features(recorded["tiles"])
    assert_close(features.pooler_output, recorded["projected"], **CLOSE)
    assert features.pooler_output.shape[1] == model.config.tokens_per_tile
    assert features.last_hidden_state.shape[1] == 4 * model.config.tokens_per_tile


def test_logits(golden, model):
    recorded = golden.tensors()
    logits = model(input_ids=recorded["input_ids"], pixel_values=recorded["tiles"]).logits
    assert_close(logits, recorded["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"ps_version": "v1"}, "projected_ps_v1"), ({"select_layer": -2}, "projected_select_layer_-2")],
)
def test_other_settings_of_the_projection(changes, name):
    golden = golden_set("sail_vl_internvit")
    recorded = golden.tensors()
    with torch.no_grad():
        projected = golden.load(**changes).get_image_features(recorded["tiles"]).pooler_output
    assert_close(projected, recorded[name], **CLOSE)


def conversation(case, images):
    """Messages as the published `chat` and `batch_chat` build them, a list for each question."""
    history = [
        {"role": role, "content": text}
        for turn in case["history"] or ()
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    if isinstance(case["question"], list):
        return [[{"role": "user", "content": prepend_images(question, 1)}] for question in case["question"]]
    question = case["question"] if history else prepend_images(case["question"], images)
    return [[*history, {"role": "user", "content": question}]]


def as_list(value):
    return value if isinstance(value, list) else [value]


PILLOW_RESIZES_OTHERWISE = Version(PIL.__version__) < Version("13")
"""Whether an image that is enlarged along one side and reduced along the other has other pixels than were recorded."""


def take_recorded_thumbnail(pixel_values, golden_chat):
    """Puts the recorded thumbnail of the last image, image1.png, in place of one that is a few levels apart."""
    tiles = next(golden_chat.tensors(number)["tiles_image1"] for number in (2, 3) if has_tiles(golden_chat, number))
    assert torch.equal(pixel_values[-len(tiles) : -1], tiles[:-1])
    assert_close(pixel_values[-1], tiles[-1], rtol=0, atol=0.5)
    pixel_values[-1] = tiles[-1]


def has_tiles(golden_chat, number):
    return "tiles_image1" in golden_chat.tensors(number)


@pytest.mark.parametrize("number", range(5))
def test_prompts_ids_and_answers(number, golden_chat, chat_model, processor):
    facts, recorded = golden_chat.facts, golden_chat.tensors(number)
    case, images = facts["cases"][number], golden_chat.images(number)
    texts = processor.apply_chat_template(conversation(case, len(images)), add_generation_prompt=True)
    expected = as_list(case.get("query", case.get("text")))
    assert expand_images(texts, case["num_patches_list"], processor.image_seq_length) == expected

    inputs = processor(images or None, texts, max_tiles=facts["max_num"], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], recorded["input_ids"])
    if "attention_mask" in recorded:
        assert torch.equal(inputs["attention_mask"], recorded["attention_mask"])
    if PILLOW_RESIZES_OTHERWISE and "image1.png" in case["images"]:
        take_recorded_thumbnail(inputs["pixel_values"], golden_chat)
    if "tiles" in recorded:
        assert torch.equal(inputs["pixel_values"], recorded["tiles"])
    if "tiles_image1" in recorded:
        assert torch.equal(inputs["pixel_values"][case["num_patches_list"][0] :], recorded["tiles_image1"])

    logits = recorded.get("last_logits", recorded.get("logits", torch.empty(1, 1, 0))[:, -1])
    assert_close(chat_model(**inputs).logits[:, -1], logits, rtol=0, atol=1e-4)
    answers = chat_model.generate(**inputs, max_new_tokens=facts["max_new_tokens"])
    new = answers[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(new, recorded["generated"])
    assert [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)] == as_list(case["response"])


def test_recorded_prompts_without_a_tokenizer(processor):
    """The set `sail_vl` has texts alone; every published format gives them."""
    for prompt in golden_set("sail_vl").facts["prompts"].values():
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, prompt["messages"], strict=False)]
        assert processor.apply_chat_template(messages, add_generation_prompt=True) == prompt["text"]


def test_messages_of_parts_are_those_of_the_published_processor(processor, golden_chat):
    """Where that processor's own template is sound: it knows no assistant's turn and no given system text."""
    for case in golden_chat.facts.get("processor_prompts", ()):
        text = processor.apply_chat_template(case["messages"], add_generation_prompt=True)
        if case["name"] in ("assistant_turn", "system_given"):
            assert "<|im_assistant|>" not in text
            assert "<|im_system|>" not in text
        else:
            assert text == case["template_text"]
