"""Recorded sets of SAIL-VL and its relatives."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from sail_encoder.models.sail_vl.modeling_sail_vl import SailVLForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = ("sail_vl", "sail_vl_internvit", "sail_vl2")


@dataclass
class Golden:
    """One recorded set.

    `options` are what its checkpoint cannot tell: `sail_vl` was recorded without a tokenizer.
    """

    folder: Path
    options: dict = field(default_factory=dict)

    @property
    def checkpoint(self):
        return self.folder / "checkpoint"

    @property
    def facts(self):
        return json.loads((self.folder / "golden.json").read_text())

    def tensors(self, case=0):
        tensors = load_file(self.folder / f"case{case}.safetensors")
        return {name: x.long() if name == "input_ids" else x for name, x in tensors.items()}

    def images(self, case):
        return [Image.open(self.folder / name) for name in self.facts["cases"][case]["images"]]

    def load(self, **changes):
        options = {"dtype": torch.float32, **self.options, **changes}
        return SailVLForConditionalGeneration.from_pretrained(self.checkpoint, **options).eval()


def save_activations(model):
    """Turns on gradient checkpointing, which transformers 5.24 calls by another name."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()


def golden_set(name):
    return Golden(GOLDEN / name, {"image_token_id": 100} if name == "sail_vl" else {})
