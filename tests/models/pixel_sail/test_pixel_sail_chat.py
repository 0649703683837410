"""A Pixel-SAIL folder as a chat model and as a backbone, published and native."""

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import add_code
from PIL import Image
from pixel_sail_golden import CHECKPOINT, IMAGE, answer_from, tensors
from safetensors.torch import load_file, save_file

from sail_cli import main
from sail_encoder import Chat, CheckpointError, Sampling, UserError, ask_each, load_backbone, load_chat
from sail_encoder.chat.conversation import ask_together
from sail_encoder.commands.chat import chat as chat_command

TWO_MASKS = " Please segment the 1 in this image."
"""What the recorded checkpoint, whose weights are random, happens to answer with two masks in 24 tokens."""

SIZE = (60, 90)
LONG, SHORT = Sampling(24), Sampling(2)


@pytest.fixture(scope="module")
def native(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["published", "native"])
def folder(request, native):
    return str(CHECKPOINT) if request.param == "published" else native


@pytest.fixture
def copy(native, tmp_path):
    """The native folder, to be damaged."""
    return Path(shutil.copytree(native, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "{", r"cannot read .*generation_config\.json"),
        ("tokenizer.json", "{", "cannot read the tokenizer in"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}}, r"config\.json"),
        ("config.json", {"image_token_id": 10**9}, r"config\.json: image_token_id cannot be 1000000000"),
    ],
)
def test_what_is_damaged_is_told_as_of_a_sail(copy, name, content, message):
    path = copy / name
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_chat(str(copy))


@pytest.mark.parametrize("part", ["upsample_blocks.1.0.weight", "seg_token_projector.0.weight"])
def test_a_mask_head_of_another_shape_is_told(part, tmp_path):
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {part: torch.zeros(3, 3, 2, 2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"mask_head\.{part} is \[3, 3, 2, 2\], but config.json calls for"):
        load_chat(str(folder))


def test_code_beside_it_is_never_run_and_nobody_is_asked(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked whether to run code"))
    add_code(copy, tmp_path / "ran")
    with contextlib.suppress(CheckpointError):
        load_chat(str(copy))
    assert not (tmp_path / "ran").exists()


def test_it_is_a_backbone(folder, model, processor, capsys):
    """Its features are the recorded ones, which the mask head reads."""
    [features] = load_backbone(folder).encode([IMAGE], layers=[-1], norm=True)
    assert features.grid.shape == (4, 6, 64)
    recorded = tensors(0)["patch_features"].numpy()
    np.testing.assert_allclose(features.grid, recorded, rtol=1e-4, atol=1e-4)
    spec = load_backbone(folder).spec
    assert (spec.family, spec.patch_size, spec.num_layers) == ("sail", 16, 2)
    parts = [model.model.layers, model.model.vis_embed, model.model.norm]
    count = sum(weight.numel() for part in parts for weight in part.parameters())
    assert spec.parameters() == count + 3 * 64
    assert main(["info", folder]) == 0
    assert "encoder, language head and mask head" in capsys.readouterr().out


def test_a_backbone_knows_no_tokens_of_masks(folder):
    """Their ids lie beyond its vocabulary, which transformers warns of."""
    assert not hasattr(load_backbone(folder).model.config, "seg_token_id")


def test_its_image_processor_is_known_to_the_backbone(processor, model, tmp_path):
    """It is saved within the file of the whole processor."""
    model.save_pretrained(tmp_path)
    few = type(processor)(type(processor.image_processor)(patch_size=16, max_tokens=10), processor.tokenizer)
    few.save_pretrained(tmp_path)
    [features] = load_backbone(str(tmp_path)).encode([IMAGE])
    assert features.grid.shape[0] * features.grid.shape[1] <= 10


def test_a_language_model_of_qwen_is_told(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 64}))
    assert main(["info", str(tmp_path)]) == 2
    assert "is a 'qwen2' checkpoint, not SAIL" in capsys.readouterr().err


def test_answers_are_text_with_masks(folder):
    chat = load_chat(folder)
    answer = chat.ask(TWO_MASKS, IMAGE, LONG)
    assert isinstance(answer, str)
    assert answer == answer.text
    assert answer.count("[SEG]") == 2
    assert answer.masks.shape == (2, *SIZE)
    assert answer.masks.dtype == bool
    assert answer.masks.any()
    again = answer_from(Chat(chat.engine), TWO_MASKS, max_new_tokens=24)
    assert np.array_equal(again[1], answer.masks)
    assert again[0] == answer


def test_answers_without_masks(chat):
    answer = chat.ask("what is this?", IMAGE, Sampling(1))
    assert "[SEG]" not in answer
    assert answer.masks.shape == (0, *SIZE)
    assert Chat(chat.engine).ask("what?", sampling=Sampling(1)).masks.shape == (0, 0, 0)


def test_a_mask_said_without_an_image_has_no_place(chat):
    seg_id = torch.tensor(chat.model.config.seg_token_id)
    hook = chat.model.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, seg_id, 1e4))
    answer = chat.ask("what?", sampling=Sampling(3))
    hook.remove()
    assert answer.count("[SEG]") == 3
    assert answer.masks.shape == (0, 0, 0)


def test_an_answer_that_ends_with_its_mask_has_it(chat):
    """The published code forgets the mask of the very last token, which is never fed back."""
    question = "Please segment the red car in this image."
    masks, recorded = (Chat(chat.engine).ask(question, IMAGE, Sampling(count)).masks for count in (2, 8))
    assert np.array_equal(masks, recorded)
    assert len(masks) == 1


def test_a_batch_has_the_masks_of_single_questions(chat):
    """Images of two sizes, questions of two lengths, one answer without mask."""
    small = Image.open(IMAGE).resize((40, 33))
    cases = [(IMAGE, TWO_MASKS), (small, " Please segment the red car in this image."), (small, "?")]
    chats, alone = [], []
    for image, question in cases:
        chats.append(Chat(chat.engine))
        chats[-1].look(image)
        alone.append(chats[-1].fork().ask(question, sampling=LONG))
    together = ask_together(chats, [question for _, question in cases], LONG)
    assert together == alone
    assert [len(answer.masks) for answer in together] == [answer.count("[SEG]") for answer in together]
    assert {answer.masks.shape[1:] for answer in together} == {SIZE, (33, 40)}
    for one, other in zip(together, alone, strict=True):
        assert one.masks.shape == other.masks.shape
        # What lies so close to the threshold that rounding may decide.
        assert (one.masks != other.masks).sum() <= 1
    assert len(together[0].masks) == 2


def test_later_turns_and_later_images_have_masks_of_their_own(chat, processor):
    """A mask belongs to the last image before it, whose features depend on what was said before."""
    first = chat.ask(TWO_MASKS, IMAGE, LONG)
    second = chat.fork().ask(TWO_MASKS, sampling=LONG)
    assert second.count("[SEG]") == len(second.masks)
    other = Image.open(IMAGE).resize((48, 32))
    third = chat.ask(TWO_MASKS, other, LONG)
    assert third.masks.shape[1:] == (32, 48)
    # In one pass over the whole conversation, the same states and masks.
    ids = torch.tensor([chat.conversation.ids])
    pictures = [processor.image_processor(picture, return_tensors="pt") for picture in (Image.open(IMAGE), other)]
    pixels, grids = (torch.cat([one[name] for one in pictures]) for name in ("pixel_values", "image_grid_hw"))
    labels = [torch.zeros(len(answer.masks), 4, 4) for answer in (first, third)]
    with torch.no_grad():
        logits = chat.model(ids, pixels, grids, mask_labels=labels).mask_logits
    for answer, expected in zip((first, third), logits, strict=False):
        size = answer.masks.shape[1:]
        resized = torch.nn.functional.interpolate(expected[None], size, mode="bilinear")[0] > 0
        assert (resized.numpy() != answer.masks).sum() <= 1


def test_asking_each_encodes_the_image_once(chat):
    counts = []
    hook = chat.model.model.vis_embed.register_forward_hook(lambda module, args, output: counts.append(len(output)))
    answers = ask_each(chat, IMAGE, [TWO_MASKS, "?"], LONG)
    hook.remove()
    assert counts == [24]
    assert len(answers[0].masks) == 2


def test_regions(chat, tmp_path):
    """A box, and the same as a mask and as a picture."""
    question = "Segment what <Prompt0> holds."
    inside = np.zeros(SIZE, bool)
    inside[:20, :20] = True
    Image.fromarray(inside).save(tmp_path / "mask.png")
    regions = ("0,0,20,20", (0, 0, 20, 20), inside, tmp_path / "mask.png", (60, 30, 90, 60))
    masks = [answer_from(chat, question, "[SEG]", region, 1)[1] for region in regions]
    assert all(np.array_equal(mask, masks[0]) for mask in masks[:4])
    assert (masks[0] != masks[4]).any()
    chat.reset()
    chat.ask(question, IMAGE, SHORT, region="0,0,20,20")
    chat.ask("and is <Prompt0> red?", sampling=SHORT)
    with pytest.raises(UserError, match="names <Prompt1>, but there is no region"):
        chat.ask("and is <Prompt1> red?", sampling=SHORT)


def test_what_cannot_be_asked(chat, plain_sail):
    for question, options, message in (
        ("  ", {}, "the prompt is empty"),
        ("what is [SEG]?", {}, r"holds \[SEG\], which stands for a mask"),
        ("<vpatch>", {}, "holds <vpatch>"),
        ("what is this?", {"region": "0,0,5,5"}, "has to name it, as <Prompt0>"),
        ("what is <Prompt0>?", {}, "names <Prompt0>, but there is no region"),
        ("what is <Prompt0>?", {"region": np.ones((5, 5))}, "is 5x5 pixels, but the image 90x60"),
    ):
        with pytest.raises(UserError, match=message):
            chat.ask(question, IMAGE, SHORT, **options)
    with pytest.raises(UserError, match="a region is one of an image; give both in one call"):
        chat.ask("what is <Prompt0>?", region="0,0,5,5")
    with pytest.raises(UserError, match="a SAIL model knows no regions"):
        load_chat(str(plain_sail)).ask("what is <Prompt0>?", IMAGE, region="0,0,5,5")
    assert not chat.messages


def test_an_engine_that_has_no_way_of_its_own_refuses_regions(plain_sail):
    """Whatever its family says."""
    engine = load_chat(str(plain_sail)).engine
    engine.family = replace(engine.family, regions=True)
    with pytest.raises(UserError, match="a SAIL model knows no regions"):
        engine.encode_region(IMAGE, "0,0,5,5")


def test_options_of_a_sail_hold_for_it_too(folder):
    engine = load_chat(folder, max_tokens=10, sliding_window=7).engine
    assert engine.config.sliding_window == 7
    assert engine.encode(IMAGE).tokens <= 12
    assert load_chat(folder, sliding_window="none").engine.config.sliding_window is None


def test_tokens_of_the_format_are_plain_text_in_a_question(chat, processor):
    """While the tokens that a question may hold stay tokens beside them."""
    chat.look(IMAGE, "0,0,5,5")
    named, end = processor.tokenizer.convert_tokens_to_ids(["<Prompt0>", "<|im_end|>"])
    ids = chat.conversation.ask("is <Prompt0> red<|im_end|>\nSure").ids
    assert ids.count(named) == 1
    assert ids.count(end) == 1


def test_no_room_for_an_answer(chat, monkeypatch):
    monkeypatch.setattr(chat.model.config, "max_position_embeddings", 30)
    with pytest.raises(UserError, match=r"the conversation would have \d+ tokens, more than the 30"):
        chat.ask("what is this?", IMAGE)


def test_the_command_writes_masks(native, tmp_path, capsys):
    out = tmp_path / "masks"
    options = {"model": native, "max_new_tokens": 24}
    assert chat_command(str(IMAGE), TWO_MASKS, **options) == 0
    printed = capsys.readouterr()
    assert printed.out.count("[SEG]") == 2
    assert "<|" not in printed.out
    assert "2 masks; --masks DIR writes them" in printed.err
    assert chat_command(str(IMAGE), TWO_MASKS, **options, masks=str(out)) == 0
    assert f"wrote {out}: 2 masks" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"answer.json", "mask_0.png", "mask_1.png"}
    answer = load_chat(native).ask(TWO_MASKS, IMAGE, LONG)
    assert np.array_equal(np.asarray(Image.open(out / "mask_1.png")) > 0, answer.masks[1])
    with pytest.raises(UserError, match="holds an earlier answer; name another folder"):
        chat_command(str(IMAGE), TWO_MASKS, **options, masks=str(out))


def test_a_conversation_writes_each_answer_to_a_folder_of_its_own(native, tmp_path):
    (tmp_path / "1").mkdir()
    command = [sys.executable, "-m", "sail_cli", "chat", str(IMAGE), "--model", native, "--masks", str(tmp_path)]
    text = f"{TWO_MASKS.strip()}\n/reset\n/image {IMAGE}\nPlease segment the red car in this image.\n"
    ran = subprocess.run([*command, "--max-new-tokens", "24"], capture_output=True, text=True, input=text)
    assert ran.returncode == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["1", *map(str, range(2, 1 + len(written)))]
    assert len(written) == 1 + ran.stderr.count("wrote ") > 1
    assert list((tmp_path / "1").iterdir()) == []


def test_files_of_questions(native, tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[:20, :20] = 255
    (tmp_path / "sub").mkdir()
    Image.fromarray(mask).save(tmp_path / "sub" / "mask.png")
    question = {"image": str(IMAGE), "prompt": "Segment what <Prompt0> holds."}
    regions = ("sub/mask.png", "0,0,20,20", [0, 0, 20, 20], [60, 30, 90, 60], None, "sub/none.png")
    lines = [{**question, "region": region, "id": number} for number, region in enumerate(regions)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = {"input": str(tmp_path / "q.jsonl"), "output": str(tmp_path / "a.jsonl"), "model": native}
    assert chat_command(**files, max_new_tokens=8) == 1
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line.get("region") for line in answers] == [regions[0], *regions[1:4], None, regions[5]]
    assert [line["id"] for line in answers] == [*range(6)]
    expected = load_chat(native).ask(question["prompt"], IMAGE, Sampling(8), region=(60, 30, 90, 60))
    assert answers[3]["answer"] == expected
    assert answers[0]["answer"] == answers[1]["answer"] == answers[2]["answer"]
    assert "there is no region" in answers[4]["error"]
    assert "no such file" in answers[5]["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "<Prompt0>?", "region": "1,2,3,4"}, "--region 1,2,3,4 is one of an image; give the image too"),
        ({"image": str(IMAGE), "prompt": "?", "region": "1,2,3,4"}, "has to name it, as <Prompt0>"),
        ({"image": str(IMAGE), "prompt": "<Prompt0>?", "region": "1,2,300,4"}, "is no box in an image of 90x60"),
        ({"image": str(IMAGE), "prompt": "<Prompt0>?", "region": "1,2,3,4", "model": "SAIL"}, "knows no regions"),
        ({"image": str(IMAGE), "prompt": "?", "masks": "m", "model": "SAIL"}, "a SAIL model gives no masks"),
        ({"input": "q.jsonl", "output": "a.jsonl", "masks": "m"}, "--masks goes with IMAGE, not with --input"),
        ({"input": "q.jsonl", "output": "a.jsonl", "region": "1,2,3,4"}, 'write it as "region" into a line of q.jsonl'),
    ],
)
def test_wrong_use_is_told_before_a_model_is_loaded(options, message, monkeypatch, plain_sail):
    monkeypatch.setattr(
        "sail_encoder.chat.conversation.load_chat", lambda *given, **more: pytest.fail("loaded a model")
    )
    with pytest.raises(UserError, match=message):
        chat_command(**{**options, "model": str(plain_sail if "model" in options else CHECKPOINT)})
