"""What several tests share: recorded values, small models, made-up images."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file

from sail_encoder import SailConfig

GOLDEN = Path(__file__).parent / "golden" / "sail"
GOLDEN_IDS = {"vision_start_token_id": 300, "image_token_id": 301, "vision_end_token_id": 302}
SMALL_IDS = {"vision_start_token_id": 90, "image_token_id": 91, "vision_end_token_id": 92}
START, PATCH, END = SMALL_IDS.values()


@dataclass
class GoldenCase:
    """One recorded image of the published code."""

    image: Path
    size: tuple[int, int]
    grid: tuple[int, int]
    prompt_ids: list[int]
    tensors: dict


def golden_cases():
    cases = json.loads((GOLDEN / "golden.json").read_text())["cases"]
    for index, case in enumerate(cases):
        tensors = load_file(GOLDEN / f"case{index}.safetensors")
        yield GoldenCase(GOLDEN / case["image"], tuple(case["size"]), tuple(case["grid"]), case["prompt_ids"], tensors)


def left_padded(rows):
    """Input ids and attention mask of prompts of different lengths."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def golden_inputs(cases):
    """Prompts of recorded cases as a batch."""
    return {
        **left_padded([case.tensors["input_ids"][0].tolist() for case in cases]),
        "pixel_values": torch.cat([case.tensors["patches"] for case in cases]),
        "image_grid_hw": torch.tensor([case.grid for case in cases]),
    }


def small_config(**changes):
    """A SAIL that runs in milliseconds."""
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return SailConfig(**{**sizes, **SMALL_IDS, **changes})


def prompt_ids(grid, text=(1, 5, 6)):
    """Token ids of an image of rows and columns, or of none, and text behind it."""
    return [START, *[PATCH] * (grid[0] * grid[1]), END, *text] if grid else [*text]


def random_patches(grids, seed=0, patch_dim=588):
    """Normal noise as the patches of images of these grids, end to end."""
    count = sum(rows * columns for rows, columns in grids)
    return torch.randn(count, patch_dim, generator=torch.Generator().manual_seed(seed))


def noise(height, width, seed=0):
    """A random image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_images(folder, count, seed=0, sides=(20, 150)):
    """Random images of mixed sizes, as 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        height, width = rng.integers(*sides, size=2)
        Image.fromarray(noise(height, width, seed + index)).save(folder / f"{index:03d}.png")
    return folder


def add_code(folder, ran):
    """Puts code beside a checkpoint, named as the Auto classes look for it; where it runs it makes a file."""
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).write_text('')\n"
        "from transformers import PreTrainedTokenizerFast\nclass Tok(PreTrainedTokenizerFast):\n    pass\n"
    )
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described |= {"auto_map": {"AutoTokenizer": [None, "evil.Tok"]}, "tokenizer_class": "Tok"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def results_in(out):
    """What a run of probes has reported."""
    return json.loads((out / "results.json").read_text())["results"]


def bomb():
    """A small file that unpacks to 30,000 x 30,000 pixels."""
    header = b"IHDR" + (30000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = b"IDAT" + zlib.compress(b"\0" * 1000)

    def chunk(body):
        return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(rows) + chunk(b"IEND")


def relative_error(value, reference):
    """Norm of the difference over the norm of the reference."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def unpatchify(patches, grid, patch_size):
    """The inverse of `patchify`: [rows * columns, 3 * p * p] -> [rows * p, columns * p, 3]."""
    p = patch_size
    return rearrange(patches, "(r k) (c y x) -> (r y) (k x) c", r=grid[0], y=p, x=p)
