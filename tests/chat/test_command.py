"""`sail chat` and `load_chat`."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from chat_helpers import answers_in, scene
from PIL import Image
from safetensors.torch import load_file, save_file

from sail_cli import main
from sail_encoder import CheckpointError, UserError, load_chat
from sail_encoder.commands import chat as command
from sail_encoder.commands.convert import convert
from sail_encoder.io.hub import TINY_FOLDER


def test_an_encoder_cannot_chat(tmp_path):
    convert("sail-tiny", str(tmp_path / "encoder"), encoder_only=True)
    with pytest.raises(CheckpointError, match="without language head"):
        load_chat(str(tmp_path / "encoder"))


def test_options_reach_the_model(loaded):
    assert load_chat("sail-tiny", sliding_window=7).model.config.sliding_window == 7
    assert load_chat("sail-tiny", sliding_window="none").model.config.sliding_window is None
    assert load_chat("sail-tiny", max_tokens=9).processor.image_processor.max_tokens == 9
    assert load_chat("sail-tiny", dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_command(tmp_path, capsys):
    Image.fromarray(scene()).save(tmp_path / "a.png")

    question = "What color is it?"
    answer = load_chat("sail-tiny").ask(question, tmp_path / "a.png")
    assert main(["chat", str(tmp_path / "a.png"), question]) == 0
    assert capsys.readouterr().out == answer + "\n"
    words = [sys.executable, "-m", "sail_cli", "chat", str(tmp_path / "a.png")]
    asked = subprocess.run(words, capture_output=True, text=True, input=f"{question}\n")
    assert (asked.returncode, asked.stdout) == (0, f"> {answer}\n> ")
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "a.png", "prompt": question}))
    files = {"input": str(tmp_path / "q.jsonl"), "output": str(tmp_path / "new" / "a.jsonl")}
    assert command.chat(**files) == 0
    assert [row["answer"] for row in answers_in(tmp_path / "new" / "a.jsonl")] == [answer]
    with pytest.raises(UserError, match=r"temperature was 0\.0, now 1\.0"):
        command.chat(**files, temperature=1.0)


def test_weights_that_have_changed_in_place_are_refused(tmp_path):
    model = shutil.copytree(TINY_FOLDER, tmp_path / "model")
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "What color is it?"}))
    files = {"input": str(tmp_path / "q.jsonl"), "output": str(tmp_path / "a.jsonl"), "model": str(model)}
    assert command.chat(**files, max_new_tokens=1) == 0
    (model / "README.md").write_text("notes")
    assert command.chat(**files, max_new_tokens=1) == 0
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights was .*, now .*; use another --output or --overwrite true"):
        command.chat(**files, max_new_tokens=1)


def test_wrong_use_is_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sail_encoder.chat.conversation.load_chat", lambda *options: pytest.fail("loaded a model"))
    (tmp_path / "q.jsonl").write_text("{")
    files = {"input": str(tmp_path / "q.jsonl"), "output": str(tmp_path / "a.jsonl")}
    for options, message in (
        ({"input": "q.jsonl"}, "--input and --output go together"),
        ({**files, "output": files["input"]}, "--input and --output are both"),
        ({**files, "image": "a.png"}, "IMAGE and PROMPT do not go with --input"),
        ({**files, "prompt": "What?"}, "IMAGE and PROMPT do not go with --input"),
        ({**files, "batch_size": 0}, "--batch_size cannot be 0"),
        (files, "line 1 is not JSON"),
        ({"image": str(tmp_path / "nowhere.png"), "prompt": "What?"}, r"nowhere\.png: no such file"),
        ({"image": str(tmp_path / "nowhere.png")}, r"nowhere\.png: no such file"),
        ({"image": str(tmp_path / "q.jsonl"), "prompt": "What?"}, r"q\.jsonl"),
        ({"prompt": " "}, "the prompt is empty; ask something"),
    ):
        with pytest.raises(UserError, match=message):
            command.chat(**options)
