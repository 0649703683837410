"""The recorded set of Pixel-SAIL."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

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


def inputs(processor, case):
    """Inputs of a case from its texts and pictures."""
    content = [{"type": "image"}, {"type": "text", "text": question(case)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    text += FACTS["cases"][case]["prefix_answer"] or ""
    regions = [prompt_masks(case)] if prompt_masks(case) else None
    return processor(images=[Image.open(IMAGE)], text=text, regions=regions, return_tensors="pt")
