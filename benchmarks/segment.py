"""Training a segmentation head, online and on cached grids, against the backbone's bare forward pass.

    python -m benchmarks.segment                                # 8 layers x 1024, on this machine's processor
    python -m benchmarks.segment --device cuda --size 7b        # SAIL-7B's sizes, random weights

Measured side by side in one run, in turns, the median of the rounds:

- bare: the frozen backbone alone, on batches that lie ready in memory;
- online: a step of `sail segment train --mode online`: reading, augmenting, backbone, head, optimizer;
- cached: a step of `--mode cached`, after the grids of all images were extracted once.

The last line names the number of steps from which on caching, extraction included, is faster.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.models import SIZES
from evals.segmentation.augment import Augmentation
from evals.segmentation.batches import Batches, CachedBatches, OnlineBatches, cache_grids
from evals.segmentation.data import SegmentationData
from evals.segmentation.layouts import DataSource
from heads.dense.registry import build_dense_head
from heads.dense.segmenter import Segmenter
from heads.recipe import Recipe
from heads.trainer import Trainer
from sail_encoder import load_backbone
from sail_encoder.backbones.batch import Batch
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.modeling_sail import SailModel

TOKEN_IDS = {"vision_start_token_id": 0, "image_token_id": 1, "vision_end_token_id": 2}
CLASSES = 150
PATCH = 14
WARM_UP = 2
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Setting:
    """What is measured: side of the crops and of the images in patches, crops in a batch, steps in a round."""

    crop: int
    image: int
    batch_size: int
    steps: int


def write_model(size: str, dtype: torch.dtype, folder: Path) -> None:
    """A checkpoint with random weights and no vocabulary."""
    fields = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = SailConfig(vocab_size=3, **TOKEN_IDS, **fields, **SIZES[size])
    torch.set_default_dtype(dtype)
    model = SailModel(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def write_data(count: int, side: int, folder: Path) -> None:
    """Photograph-like images: smooth, with grain; masks of large regions."""
    rng = np.random.default_rng(0)
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            coarse = rng.integers(0, 255 if kind == "images" else CLASSES, (12, 12, 3), dtype=np.uint8)
            small = Image.fromarray(coarse if kind == "images" else coarse[..., 0])
            filter_ = Image.Resampling.BICUBIC if kind == "images" else Image.Resampling.NEAREST
            small.resize((side, side), filter_).save(folder / kind / "train" / f"{index}.{suffix}")


def seconds_a_step(segmenter: Segmenter, batches: Batches, setting: Setting) -> float:
    """The mean over the steps of a round, from the third step on."""
    total = WARM_UP + setting.steps
    head = build_dense_head("linear", [segmenter.backbone.embed_dim], CLASSES).to(segmenter.backbone.device)
    recipe = Recipe((1e-3,), steps=total, batch_size=setting.batch_size, weight_decay=1e-4, schedule="poly")
    trainer = Trainer(head, recipe, lambda head, batch: head.loss(*batch))
    with closing(batches.between(0, total)) as source:
        losses = map(trainer.train_step, source)
        return clock((float(loss) if last else 0.0 for last, loss in mark_last(losses, total)), setting.steps)


def mark_last(items: Iterator[torch.Tensor], total: int) -> Iterator[tuple[bool, torch.Tensor]]:
    """Items with whether the device is to be waited for: before the clock starts, and when it stops."""
    for index, item in enumerate(items):
        yield index in (WARM_UP - 1, total - 1), item


def clock(steps: Iterator[float], count: int) -> float:
    """Seconds a step of an iterator that does one step at a time, the warm-up left out."""
    for _ in range(WARM_UP):
        next(steps)
    start = time.perf_counter()
    for _ in steps:
        pass
    return (time.perf_counter() - start) / count


def bare_forward(segmenter: Segmenter, batches: list[Batch], setting: Setting) -> float:
    """Seconds a batch of the backbone alone."""

    def encode() -> Iterator[float]:
        total = WARM_UP + setting.steps
        for index in range(total):
            encoded = segmenter.backbone.forward(batches[index % len(batches)], segmenter.source.layers)
            state = encoded.patches[segmenter.source.layers[0]]
            yield float(state[0, 0]) if index in (WARM_UP - 1, total - 1) else 0.0

    return clock(encode(), setting.steps)


def open_data(images: int, side: int, folder: Path) -> SegmentationData:
    """Drawn images and masks, as `sail segment train` opens them."""
    write_data(images, side, folder)
    (folder / "classes.txt").write_text("\n".join(f"class {index}" for index in range(CLASSES)))
    (data,) = DataSource(str(folder)).open("train")
    return data


def build_segmenter(size: str, device: str, folder: Path) -> Segmenter:
    """A linear head on the last layer of a backbone with random weights."""
    write_model(size, torch.bfloat16 if device == "cuda" else torch.float32, folder)
    backbone = load_backbone(str(folder), device)
    layers = (backbone.num_layers - 1,)
    source = FeatureSpec(str(folder), layers, weights=backbone.fingerprint(layers[0]))
    return Segmenter(backbone, build_dense_head("linear", [backbone.embed_dim], CLASSES), source)


def ready_batches(online: OnlineBatches, setting: Setting) -> list[Batch]:
    """Two batches of crops that lie ready in memory."""
    backbone = online.segmenter.backbone
    labels = np.empty(online.augmentation.crop, np.uint8)
    crops = [online.prepare((position, labels)) for position in range(2 * setting.batch_size)]
    halves = [backbone.collate(half) for half in (crops[: setting.batch_size], crops[setting.batch_size :])]
    return [half.pin_memory() for half in halves] if backbone.device.type == "cuda" else halves


def cached_batches(
    segmenter: Segmenter, data: SegmentationData, setting: Setting, folder: Path
) -> tuple[CachedBatches, float]:
    """Batches of cached grids, and the seconds that it took to extract these."""
    start = time.perf_counter()
    features = cache_grids(data.samples, segmenter.backbone, segmenter.source, folder)
    extraction = time.perf_counter() - start
    crop, place = (setting.crop, setting.crop), segmenter.backbone.device
    return CachedBatches(features, data, crop, PATCH, True, setting.batch_size, 0, place), extraction


def measure(size: str, device: str, images: int, rounds: int, setting: Setting) -> None:
    """Runs the benchmark and prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = open_data(images, setting.image * PATCH, folder / "data")
        segmenter = build_segmenter(size, device, folder / "model")
        online = OnlineBatches(segmenter, data, Augmentation((setting.crop * PATCH,) * 2), setting.batch_size, 0)
        packs = ready_batches(online, setting)
        cached, extraction = cached_batches(segmenter, data, setting, folder / "cache")
        times: dict[str, list[float]] = {"bare": [], "online": [], "cached": []}
        for _ in range(rounds):
            times["bare"].append(bare_forward(segmenter, packs, setting))
            times["online"].append(seconds_a_step(segmenter, online, setting))
            times["cached"].append(seconds_a_step(segmenter, cached, setting))
    report({name: statistics.median(values) for name, values in times.items()}, extraction, images, setting)


def report(median: dict[str, float], extraction: float, images: int, setting: Setting) -> None:
    """Prints rates, ratios and the break-even."""
    for name, seconds in median.items():
        ratio = median["bare"] / seconds
        print(f"{name:<8} {setting.batch_size / seconds:10.1f} images/s  {ratio:6.2f} of the bare forward pass")
    print(f"cached is {median['online'] / median['cached']:.1f} times as fast as online, a step")
    saved = median["online"] - median["cached"]
    print(f"extraction of {images:,} images took {extraction:.1f} s")
    if saved <= 0:
        print("break-even: never, because a step online is no slower")
        return
    steps = extraction / saved
    print(f"break-even: {steps:,.0f} steps, {steps * setting.batch_size / images:.1f} passes over the images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crop", type=int, default=16, help="side of the crops in patches")
    parser.add_argument("--image", type=int, default=20, help="side of the images in patches")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps in a round")
    options = parser.parse_args()
    setting = Setting(options.crop, options.image, options.batch_size, options.steps)
    measure(options.size, options.device, options.images, options.rounds, setting)


if __name__ == "__main__":
    main()
