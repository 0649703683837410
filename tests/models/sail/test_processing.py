"""`SailProcessor`: the published chat format, and what a conversation becomes."""

import pytest
import torch
from PIL import Image

from sail_encoder import SailProcessor, UserError, load_chat

IMAGE = {"type": "image", "image": Image.new("RGB", (70, 42))}
"""Five patches wide, three high."""

IMAGE_TEXT = "<vision><vpatch></vision>"


@pytest.fixture(scope="module")
def processor():
    return load_chat("sail-tiny").processor


def user(*content):
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if part is not IMAGE else IMAGE for part in content],
    }


def assistant(text):
    return {"role": "assistant", "content": text}


TWO_TURNS = [user(IMAGE, "Where?"), assistant("left"), user("And now?"), assistant("right")]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([user(IMAGE, "Where?")], f"{IMAGE_TEXT}<s>[INST] Where? [/INST]"),
        ([{"role": "user", "content": "Hi"}], "<s>[INST] Hi [/INST]"),
        (TWO_TURNS, f"{IMAGE_TEXT}<s>[INST] Where? [/INST]left</s>[INST] And now? [/INST]right</s>"),
        (
            [user("Hi"), assistant("yes"), user(IMAGE, "It?")],
            f"<s>[INST] Hi [/INST]yes</s>{IMAGE_TEXT}[INST] It? [/INST]",
        ),
        ([{"role": "system", "content": "Be brief."}, user("Hi")], "<s>[INST] Be brief.\n\nHi [/INST]"),
    ],
)
def test_chat_format(processor, messages, text):
    assert processor.apply_chat_template(messages, tokenize=False) == text


def test_unknown_roles_and_contents_are_refused(processor):
    with pytest.raises(Exception, match="not tool"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
    with pytest.raises(Exception, match="not video"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], tokenize=False)


def encode(processor, chats, **options):
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, processor_kwargs={"padding": True, "return_tensors": "pt"}, **options
    )


def test_an_image_comes_before_the_beginning_and_has_a_token_a_patch(processor):
    inputs = encode(processor, [[user(IMAGE, "Where?")]])
    start, patch, end, begin = processor.tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>", "<s>"])
    assert inputs["image_grid_hw"].tolist() == [[3, 5]]
    assert inputs["pixel_values"].shape == (15, 3 * 14 * 14)
    assert inputs["input_ids"][0, :18].tolist() == [start, *[patch] * 15, end, begin]
    assert (inputs["input_ids"] == patch).sum() == 15


def test_turns_are_tokenized_each_on_its_own(processor):
    ids = processor.tokenize(["<s>[INST] Where? [/INST]left</s>"], [])[0][0]
    parts = [
        processor.tokenizer(part, add_special_tokens=False).input_ids for part in ("[INST] Where? [/INST]", "left")
    ]
    assert ids == [processor.tokenizer.bos_token_id, *parts[0], *parts[1], processor.tokenizer.eos_token_id]


def test_the_mask_of_answers(processor):
    chats = [TWO_TURNS, [{"role": "user", "content": "Hi"}, assistant("red")]]
    inputs = encode(processor, chats, return_assistant_tokens_mask=True)
    masks = torch.as_tensor(inputs["assistant_masks"]).bool()
    said = [processor.decode(ids[mask]) for ids, mask in zip(inputs["input_ids"], masks, strict=True)]
    assert said == [" left</s> right</s>", " red</s>"]


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        ([f"{IMAGE_TEXT}a"], None, "holds 1 images"),
        (["a"], [IMAGE["image"]], "holds 0 images"),
        (None, None, "nothing to process"),
    ],
)
def test_images_and_texts_that_do_not_fit(processor, texts, images, message):
    with pytest.raises(ValueError, match=message):
        processor(text=texts, images=images)


def test_prompts_are_not_cut_silently(processor):
    with pytest.raises(ValueError, match="cannot be cut to 10"):
        processor(text=[f"{IMAGE_TEXT}a"], images=[IMAGE["image"]], truncation=True, max_length=10)


def test_a_question_that_holds_a_vision_token_is_told_in_one_line():
    chat = load_chat("sail-tiny")
    with pytest.raises(UserError, match="<vpatch>"):
        chat.ask("What is <vpatch>?")
    assert isinstance(chat.processor, SailProcessor)
    assert chat.messages == []
