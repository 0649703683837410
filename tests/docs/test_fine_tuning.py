"""The example of docs/fine-tuning.md, run as it stands there, or as its comment says for older versions."""

import re
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from evals.scenes import draw_scene
from sail_encoder import Chat, SailForCausalLM, load_chat

PAGE = Path(__file__).parents[2] / "docs" / "fine-tuning.md"


@pytest.fixture(scope="module")
def after_the_example(tmp_path_factory):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    if not hasattr(TrainingArguments, "activation_checkpointing"):
        code = code.replace("activation_checkpointing=", "gradient_checkpointing=")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        names = {}
        exec(compile(code, str(PAGE), "exec"), names)
        names["folder_of_run"] = Path.cwd()
        yield names


def test_the_loss_falls(after_the_example):
    losses = [row["loss"] for row in after_the_example["trainer"].state.log_history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_what_was_learned_is_said_and_saved(after_the_example):
    merged = after_the_example["merged"]
    assert isinstance(merged, SailForCausalLM)
    answer = Chat(merged.eval(), after_the_example["processor"]).ask(
        "What do you see?", draw_scene(99, 1, 112, 112).image
    )
    assert answer.startswith("the ")
    assert (after_the_example["folder_of_run"] / "runs" / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    saved = load_chat(str(after_the_example["folder_of_run"] / "runs" / "lora" / "merged"))
    assert saved.ask("What do you see?", draw_scene(99, 1, 112, 112).image) == answer


def test_labels_are_the_answers(after_the_example):
    examples, processor = after_the_example["examples"][:3], after_the_example["processor"]
    batch = after_the_example["collate"](examples)
    for example, labels in zip(examples, batch["labels"], strict=True):
        assert processor.decode(labels[labels != -100]).strip() == example["answer"] + processor.tokenizer.eos_token
    assert torch.equal(batch["labels"] != -100, batch["labels"] == batch["input_ids"])
