"""Extraction against the bare products of the same shapes, and against the published way.

    python -m benchmarks.extract                    # 8 layers x 1024, on this machine's processor; about ten minutes
    python -m benchmarks.extract --device cuda --size 7b --precisions bfloat16 --images 200 --compile

Measured side by side in one run, in turns, the median of the rounds:

- bare: the matrix products and the attention of the same shapes, nothing else;
- ours: `sail extract`, from image files to .npy, at the last layer and at three quarters of the depth;
- published: the way of the published example, see `benchmarks/published.py`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from benchmarks.models import SIZES, build_model, synchronize
from benchmarks.published import encode_image
from sail_encoder.backbones.sail import SailVisionBackbone
from sail_encoder.backbones.spec import BackboneSpec, FeatureSpec
from sail_encoder.extraction.pipeline import Pipeline
from sail_encoder.images.resizing import Resize, Size
from sail_encoder.images.sources import list_images
from sail_encoder.io.devices import measure_matrix_rate
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.packed_images import cumulative, packed_attention
from sail_encoder.store.store import FeatureStore

PIXELS = ((160, 120), (224, 224), (320, 240), (240, 427), (448, 448))
"""Heights and widths of the photographs, in equal shares."""


Heads = tuple[Tensor, Tensor, Tensor]


@dataclass
class Setting:
    """What is measured."""

    model: SailForCausalLM
    backbone: SailVisionBackbone
    folder: Path
    grids: list[Size]
    budget: int

    @property
    def device(self) -> torch.device:
        return self.backbone.device


def draw_photographs(folder: Path, count: int, scale: float) -> None:
    """Images with the sizes and the decoding cost of photographs."""
    rng = np.random.default_rng(0)
    for index in range(count):
        height, width = (int(side * scale) for side in PIXELS[index % len(PIXELS)])
        coarse = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg")


def ours(setting: Setting, layer: int) -> float:
    """Seconds from files to .npy."""
    features = FeatureSpec("benchmark", (layer,))
    images = list_images([str(setting.folder)]).images
    with tempfile.TemporaryDirectory() as out, FeatureStore(Path(out), {"benchmark": True}) as store:
        pipeline = Pipeline(setting.backbone, store, features, lambda records: None, setting.budget, 2)
        start = time.perf_counter()
        pipeline.run(store.missing(images))
        store.finish(images, {})
        return time.perf_counter() - start


def bare(setting: Setting, depth: int) -> float:
    """Seconds of the products and the attention alone, for packs of the same sizes."""
    packs: list[list[int]] = [[]]
    filled = 0
    for rows, columns in setting.grids:
        if packs[-1] and filled + rows * columns > setting.budget:
            packs.append([])
            filled = 0
        packs[-1].append(rows * columns + 2)
        filled += rows * columns
    shapes = [_shapes(setting, sorted(lengths)) for lengths in packs]
    synchronize(setting.device)
    start = time.perf_counter()
    for tokens, wide, heads, lengths, cu_seqlens in shapes:
        layers: Any = setting.model.model.layers
        for layer in layers[:depth]:
            attention, mlp = layer.self_attn, layer.mlp
            F.linear(tokens, attention.q_proj.weight)
            F.linear(tokens, attention.k_proj.weight)
            F.linear(tokens, attention.v_proj.weight)
            packed_attention(*heads, lengths, cu_seqlens, attention.scaling)
            F.linear(tokens, attention.o_proj.weight)
            F.linear(tokens, mlp.gate_proj.weight)
            F.linear(tokens, mlp.up_proj.weight)
            F.linear(wide, mlp.down_proj.weight)
    synchronize(setting.device)
    return time.perf_counter() - start


def _shapes(setting: Setting, lengths: list[int]) -> tuple[Tensor, Tensor, Heads, list[int], Tensor]:
    config, total = setting.model.config, sum(lengths)
    head_dim = config.attention_width // config.num_attention_heads

    def new(*shape: int) -> Tensor:
        return torch.randn(total, *shape, device=setting.device).to(setting.backbone.dtype)

    keys = config.key_value_width // head_dim
    heads = new(config.num_attention_heads, head_dim), new(keys, head_dim), new(keys, head_dim)
    cu_seqlens = cumulative(torch.tensor(lengths)).to(setting.device)
    return new(config.hidden_size), new(config.intermediate_size), heads, lengths, cu_seqlens


def published(setting: Setting) -> float:
    """Seconds of the published example's way, from files to features in memory."""
    start = time.perf_counter()
    for path in sorted(setting.folder.glob("*.jpg")):
        image = setting.backbone.prepare(path, Resize())
        pixels = setting.backbone.normalize(torch.from_numpy(image.views).to(setting.device))
        encode_image(setting.model, pixels, image.geometry.grid, DynamicCache())[-1].float().cpu().numpy()
    return time.perf_counter() - start


def compare(setting: Setting, rounds: int) -> None:
    """Prints rates and ratios for one precision."""
    depth = setting.backbone.num_layers
    quarter = depth * 3 // 4
    contenders: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(setting, depth),
        "ours": lambda: ours(setting, depth - 1),
        "ours, 3/4 depth": lambda: ours(setting, quarter - 1),
        "published": lambda: published(setting),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            seconds = run()
            if turn:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    images, tokens = len(setting.grids), sum(rows * columns for rows, columns in setting.grids)
    dtype = str(setting.backbone.dtype).removeprefix("torch.")
    for name, seconds in median.items():
        print(f"{dtype:9} {name:16} {images / seconds:8.2f} images/s {tokens / seconds:10,.0f} patches/s")
    print(f"{dtype:9} ours / bare                  {median['bare'] / median['ours']:.2f}")
    print(f"{dtype:9} published / ours             {median['published'] / median['ours']:.2f}")
    print(f"{dtype:9} published / ours, 3/4 depth  {median['published'] / median['ours, 3/4 depth']:.2f}")
    if setting.device.type == "cuda":
        report_device(setting, median["ours"])


def report_device(setting: Setting, seconds: float) -> None:
    """Prints the share of the device's matrix rate that is used, and the memory."""
    config, dtype = setting.model.config, setting.backbone.dtype
    width = 2 * config.attention_width + 2 * config.key_value_width + 3 * config.intermediate_size
    lengths = [rows * columns + 2 for rows, columns in setting.grids]
    per_layer = sum(2 * config.hidden_size * width * n + 4 * n**2 * config.attention_width for n in lengths)
    rate = config.num_hidden_layers * per_layer / seconds
    peak = measure_matrix_rate(setting.device, dtype)
    print(f"{rate / 1e12:.0f} TFLOP/s, {rate / peak:.0%} of the {peak / 1e12:.0f} of a large product")
    print(f"peak memory {torch.cuda.max_memory_allocated(setting.device) / 1e9:.1f} GB")


def memory(checkpoint: Path, count: int) -> int:
    """Peak memory in bytes of `sail extract` over so many small photographs, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        photographs.mkdir()
        draw_photographs(photographs, count, 0.25)
        command = [sys.executable, "-m", "sail_cli", "extract", str(photographs), "--out", f"{folder}/out"]
        subprocess.run([*command, "--model", str(checkpoint)], check=True, capture_output=True)
        (run,) = json.loads(Path(folder, "out", "run.json").read_text())["runs"]
    return int(run["peak_memory_bytes"])


def compare_memory(size: str) -> None:
    """Prints whether memory grows with the number of images."""
    with tempfile.TemporaryDirectory() as checkpoint:
        build_model(size, torch.device("cpu"), torch.float32).save_pretrained(checkpoint)
        few, many = (memory(Path(checkpoint), count) for count in (200, 2000))
    print(f"peak memory of sail extract  {few / 1e6:.0f} MB for 200 images, {many / 1e6:.0f} MB for 2,000")


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--images", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the sides of the photographs")
    parser.add_argument("--compile", action="store_true", help="also with compiled layers")
    parser.add_argument("--token_budget", type=int, help="by default what sail extract takes")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        draw_photographs(Path(folder), arguments.images, arguments.scale)
        sizes = [Image.open(path).size[::-1] for path in sorted(Path(folder).glob("*.jpg"))]
        grids = [Resize().grid(size, 14) for size in sizes]
        for precision in arguments.precisions:
            model = build_model(arguments.size, device, getattr(torch, precision))
            spec = BackboneSpec("random", "sail", 14, model.config.hidden_size, model.config.num_hidden_layers)
            backbone = SailVisionBackbone(spec, model.model)
            budget = arguments.token_budget or backbone.default_token_budget()
            setting = Setting(model, backbone, Path(folder), grids, budget)
            compare(setting, arguments.rounds)
            if arguments.compile:
                for layer in model.model.layers:
                    layer.compile(dynamic=True)
                print("with compiled layers, which the published way does not use:")
                compare(setting, arguments.rounds)
    if device.type == "cpu":
        compare_memory(arguments.size)


if __name__ == "__main__":
    main()
