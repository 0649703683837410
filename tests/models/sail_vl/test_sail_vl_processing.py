"""`SailVLProcessor`: prompts, tiles and tokenizers."""

import json

import numpy as np
import pytest
import torch
from helpers import noise
from PIL import Image
from sail_vl_golden import GOLDEN

from sail_encoder.io.errors import UserError
from sail_encoder.models.sail_vl.image_processing_sail_vl import SailVLImageProcessor
from sail_encoder.models.sail_vl.processing_sail_vl import SailVLProcessor
from sail_encoder.models.sail_vl.prompts import (
    SYSTEM_TEXT,
    THINKING_REQUEST,
    expand_images,
    prepend_frames,
    prepend_images,
    request_thinking,
)


@pytest.fixture(scope="module")
def vl2():
    return SailVLProcessor.from_pretrained(GOLDEN / "sail_vl2" / "checkpoint")


def test_a_published_folder(vl2):
    assert vl2.image_token_id == 300
    assert vl2.image_seq_length == 4
    assert vl2.image_processor.max_tiles == 10
    assert dict(vl2.image_processor.size) == {"height": 56, "width": 56}
    assert vl2.tokenizer.padding_side == "left"
    limited = SailVLProcessor.from_pretrained(GOLDEN / "sail_vl2" / "checkpoint", max_tiles=3, msac=True)
    assert (limited.image_processor.max_tiles, limited.image_processor.msac) == (3, True)


def test_options_of_a_published_processor(copy_of, edit_json):
    folder = copy_of("sail_vl2")
    edit_json(folder / "preprocessor_config.json", max_dynamic_patch=4, use_msac=True, image_mean=[0.5, 0.5, 0.5])
    image_processor = SailVLProcessor.from_pretrained(folder).image_processor
    assert (image_processor.max_tiles, image_processor.msac) == (4, True)
    assert list(image_processor.image_mean) == [0.5] * 3
    (folder / "preprocessor_config.json").unlink()
    assert SailVLProcessor.from_pretrained(folder).image_processor.max_tiles == 10


def test_a_stray_tokenizer_of_another_model_is_ignored(vl2, copy_of):
    folder = copy_of("sail_vl2")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05another model's")
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>这是 the<|im_end|>"
    for missing in ("chat_template.jinja", "tokenizer.json"):
        (folder / missing).unlink(missing_ok=True)
        tokenizer = SailVLProcessor.from_pretrained(folder).tokenizer
        assert tokenizer(text)["input_ids"] == vl2.tokenizer(text)["input_ids"]


def test_no_remote_code_is_offered(copy_of, edit_json, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run remote code"))
    folder = copy_of("sail_vl2")
    auto_map = {"AutoConfig": "configuration_sailvl.SailVLConfig", "AutoModel": "modeling_sailvl.SailVLModel"}
    edit_json(folder / "config.json", auto_map=auto_map)
    assert SailVLProcessor.from_pretrained(folder).image_token_id == 300


def test_system_text(vl2):
    messages = [{"role": "user", "content": "Hi"}]
    text = vl2.apply_chat_template(messages, add_generation_prompt=True)
    assert text.startswith(f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|><|im_start|>user\nHi<|im_end|>")
    own = [{"role": "system", "content": "Be brief."}, *messages]
    assert vl2.apply_chat_template(own) == ("<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|>")


def test_parts_keep_their_order(vl2):
    content = [{"type": "text", "text": "First "}, {"type": "image"}, {"type": "text", "text": "then ask."}]
    text = vl2.apply_chat_template([{"role": "user", "content": content}])
    assert text.endswith("user\nFirst <image>\nthen ask.<|im_end|>")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "tool", "content": "x"}, "knows the roles system, user and assistant, not tool"),
        ({"role": "user", "content": [{"type": "audio"}]}, "reads text and images, not audio"),
    ],
)
def test_messages_that_it_cannot_read(message, reason, vl2):
    with pytest.raises(Exception, match=reason):
        vl2.apply_chat_template([message])


def test_tokens_of_the_assistant_are_marked(vl2):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": Image.fromarray(noise(56, 56))}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    out = vl2.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert out["pixel_values"].shape == (1, 3, 56, 56)
    assert int((out["input_ids"] == 300).sum()) == 4
    assert vl2.decode(out["input_ids"][0]).endswith("</img>\n<|im_end|><|im_start|>assistant\nA cat.<|im_end|>")


def test_images_and_frames_in_front():
    recorded = json.loads((GOLDEN / "sail_tiling" / "tiling.json").read_text())["eval_prompts"]
    assert prepend_images("What is this?", 1) == recorded[0]["prompt"]
    assert prepend_images("Order them.", 3) == recorded[3]["prompt"]
    assert prepend_frames("Order them.", 3) == recorded[3]["as_video"]
    assert prepend_images("Hello", 0) == "Hello"
    assert prepend_images("Is <image> a cat?", 1) == "Is <image> a cat?"


def test_a_request_to_think():
    facts = json.loads((GOLDEN / "sail_vl2" / "golden.json").read_text())
    assert facts["cot_prompt"] == THINKING_REQUEST
    assert request_thinking("What is 3 x 4?") == facts["cases"][4]["question"]


def test_expansion():
    assert expand_images(["a<image>b<image>", "c", "<image>"], [1, 2, 1], 2) == [
        "a<img><IMG_CONTEXT><IMG_CONTEXT></img>b<img>" + "<IMG_CONTEXT>" * 4 + "</img>",
        "c",
        "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
    ]
    with pytest.raises(UserError, match=r"holds 1 images \(<image>\), but 2 were given"):
        expand_images(["<image>"], [1, 1], 2)
    with pytest.raises(UserError, match="write <image> for an image"):
        expand_images(["<IMG_CONTEXT>"], [], 2)


def test_video_frames_are_tiles(vl2):
    frames = [Image.fromarray(noise(40, 90, seed)) for seed in range(3)]
    out = vl2(frames, prepend_frames("What happens?", 3), max_tiles=1, return_tensors="pt")
    assert out["pixel_values"].shape == (3, 3, 56, 56)
    assert int((out["input_ids"] == 300).sum()) == 12


def test_images_alone_come_with_their_tiles(vl2):
    images = [Image.fromarray(noise(*size)) for size in ((50, 50), (50, 100))]
    out = vl2(images, return_tensors="pt")
    assert out["num_tiles"].tolist() == [1, 3]
    assert out["pixel_values"].shape == (4, 3, 56, 56)
    assert torch.equal(out["pixel_values"][1:], vl2(images[1:], return_tensors="pt")["pixel_values"])
    tokens = vl2._get_num_multimodal_tokens([(50, 50), (50, 100)])
    assert tokens.num_image_patches == [1, 3]
    assert tokens.num_image_tokens == [6, 14]


def test_nothing_to_process(vl2):
    with pytest.raises(ValueError, match="there is nothing to process"):
        vl2()


def test_arrays_and_modes_give_the_same_tiles():
    processor = SailVLImageProcessor(size={"height": 56, "width": 56})
    array = noise(60, 80)
    image = Image.fromarray(array)
    expected = processor(image, return_tensors="np")["pixel_values"]
    for same in (array, array.transpose(2, 0, 1), torch.from_numpy(array), image.convert("RGBA")):
        assert np.array_equal(processor(same, return_tensors="np")["pixel_values"], expected)
    gray = processor(image.convert("L"), return_tensors="np")["pixel_values"]
    assert gray.shape == expected.shape


def test_pixels_that_cannot_be_tiled():
    processor = SailVLImageProcessor()
    with pytest.raises(UserError, match="leave do_rescale at True"):
        processor(noise(60, 80).astype(np.float32) / 255, do_rescale=False)
    with pytest.raises(UserError, match="tiles are square, so size cannot be 56x84"):
        processor(Image.fromarray(noise(60, 80)), size={"height": 56, "width": 84})


def test_without_normalisation():
    processor = SailVLImageProcessor(size={"height": 56, "width": 56}, do_normalize=False, do_rescale=False)
    image = Image.fromarray(noise(56, 56))
    assert np.array_equal(processor(image)["pixel_values"][0], np.asarray(image).transpose(2, 0, 1))
