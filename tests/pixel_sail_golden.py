"""The recorded set of Pixel-SAIL."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from sail_encoder import Sampling

GOLDEN = Path(__file__).parent / "golden" / "pixel_sail"
CHECKPOINT = GOLDEN / "checkpoint"
IMAGE = GOLDEN / "image0.png"
FACTS = json.loads((GOLDEN / "golden.json").read_text())
CASES = range(len(FACTS["cases"]))
GRID = torch.tensor([FACTS["cases"][0]["grid"]])
NO_MASKS = [index for index in CASES if not FACTS["cases"][index]["num_masks"]]
WITH_MASKS = [index for index in CASES if FACTS["cases"][index]["num_masks"]]


def tensors(case):
    """What was recorded of a case."""
    return load_file(GOLDEN / f"case{case}.safetensors")


def question(case):
    """The question of a case, without the mark of its image."""
    return FACTS["cases"][case]["text"].removeprefix("<image>\n")


def prompt_masks(case):
    """The regions of a case by their numbers."""
    facts = FACTS["cases"][case]
    masks = [np.asarray(Image.open(GOLDEN / name)) > 0 for name in facts["prompt_masks"]]
    return dict(zip(facts["prompt_ids"] or (), masks, strict=True))


def answer_from(chat, prompt, start="", region=None, max_new_tokens=8):
    """Text and masks of an answer that begins so, as the recorded ones do."""
    chat.reset()
    chat.look(IMAGE, region)
    question = chat.conversation.ask(prompt)
    begun = chat.processor.tokenizer(start, add_special_tokens=False)["input_ids"]
    prompt = replace(question, ids=question.ids + begun, context=chat.context)
    answer, _ = chat.engine.generate(prompt, Sampling(max_new_tokens))
    said = begun + answer.ids
    [masks] = chat.engine.predict_masks([said], [question], [chat.context])
    return chat.engine.decode(said).strip(), masks


def inputs(processor, case):
    """Inputs of a case from its texts and pictures."""
    content = [{"type": "image"}, {"type": "text", "text": question(case)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    text += FACTS["cases"][case]["prefix_answer"] or ""
    regions = [prompt_masks(case)] if prompt_masks(case) else None
    return processor(images=[Image.open(IMAGE)], text=text, regions=regions, return_tensors="pt")
