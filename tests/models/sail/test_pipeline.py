"""A converted checkpoint in the hands of transformers' own interfaces."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline

from evals.scenes import draw_scene
from sail_encoder import SailProcessor, load_chat
from sail_encoder.commands.convert import convert


@pytest.fixture(scope="module")
def converted(published_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "native"
    assert convert(str(published_tiny), str(folder)) == 0
    return folder


def scenes():
    return [Image.fromarray(draw_scene(seed, 1, height, 112).image) for seed, height in ((1, 112), (2, 154))]


def conversation(image, prompt):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]


def test_pipeline_answers_what_chat_answers(converted):
    prompts = ["What color is it?", "Describe the image."]
    chats = [conversation(image, prompt) for image, prompt in zip(scenes(), prompts, strict=True)]
    pipe = pipeline("image-text-to-text", model=str(converted), dtype=torch.float32, device="cpu")
    answers = pipe(text=chats, return_full_text=False, max_new_tokens=24, do_sample=False)
    chat = load_chat(str(converted), dtype="float32")
    for image, prompt, [answer] in zip(scenes(), prompts, answers, strict=True):
        chat.reset()
        assert answer["generated_text"].strip() == chat.ask(prompt, image)


def test_answers_in_a_batch_whatever_side_the_tokenizer_pads_on(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "right")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "right"}))
    assert AutoTokenizer.from_pretrained(folder).padding_side == "right"
    prompts = ["What color is it?", "Describe the image. Say all that you see, and where it is."]
    chats = [conversation(image, prompt) for image, prompt in zip(scenes(), prompts, strict=True)]
    pipe = pipeline("image-text-to-text", model=str(folder), dtype=torch.float32, device="cpu")
    options = {"return_full_text": False, "max_new_tokens": 16, "do_sample": False}
    alone = [pipe(text=chat, **options)[0]["generated_text"] for chat in chats]
    together = [answer["generated_text"] for [answer] in pipe(text=chats, batch_size=2, **options)]
    assert together == alone
    texts = ["<s>[INST] Hi [/INST]", "<s>[INST] What is it? [/INST]"]
    assert pipe.processor(text=texts, padding=True)["attention_mask"][0][0] == 0


def test_auto_classes_in_a_batch(converted):
    processor = AutoProcessor.from_pretrained(converted)
    assert isinstance(processor, SailProcessor)
    chats = [conversation(image, "What shape is it?") for image in scenes()]
    chats.append([{"role": "user", "content": "How many things are there?"}])
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, processor_kwargs={"padding": True, "return_tensors": "pt"}
    )
    assert inputs["attention_mask"][:, -1].all(), "prompts are padded on the left"
    model = AutoModelForImageTextToText.from_pretrained(converted, dtype=torch.float32)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    chat = load_chat(str(converted), dtype="float32")
    for messages, answer in zip(chats, answers, strict=True):
        chat.reset()
        content = messages[0]["content"]
        image, prompt = (None, content) if isinstance(content, str) else (content[0]["image"], content[1]["text"])
        assert answer.strip() == chat.ask(prompt, image)


def test_processor_comes_back_as_saved(converted, tmp_path):
    processor = AutoProcessor.from_pretrained(converted)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, SailProcessor)
    messages = conversation(scenes()[1], "Where is it?")
    first, second = (
        one.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        for one in (processor, again)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tokenizer_without_padding_pads_with_the_end(converted):
    loaded = AutoProcessor.from_pretrained(converted)
    loaded.tokenizer.pad_token = None
    processor = SailProcessor(loaded.image_processor, loaded.tokenizer)
    batch = processor(text=["<s>[INST] Hi [/INST]", "<s>[INST] What is it? [/INST]"], padding=True)
    assert batch["input_ids"][0][0] == processor.tokenizer.eos_token_id
    assert batch["attention_mask"][0][0] == 0
