"""Works that the soak interrupts, their inputs, and what each of them leaves when it is done."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS, PAIRS, QUESTIONS, HEAD = "data/photos", "data/pairs", "data/questions.jsonl", "data/head"
OUT = "out"
BROKEN = "017_broken.png"
"""A photograph that no run can read, so that failures are among what is compared."""

Left = dict[str, str]
"""What a work leaves: for each name a digest, or words."""


@dataclass(frozen=True)
class Work:
    """A command of `sail`, run in a folder that holds its inputs under `data`.

    Attributes:
        arguments: Arguments of `sail`.
        read: What is left in the folder of the command that has ended, to be compared.
        images: Where the images lie of which one may be damaged.
        state: Files of its own that may be damaged, and how: `noise` at the beginning, `half` of it, or `empty`. A
            journal of features is not shortened, since what it names no more counts as another program's.
        in_shares: Whether several processes may do a share each.
    """

    arguments: tuple[str, ...]
    read: Callable[[Path], Left]
    images: str
    state: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_shares: bool = False


def read_features(folder: Path) -> Left:
    """Digest of the features of each image, or the reason why it has none."""
    from sail_encoder import FeatureFolder

    features = FeatureFolder(folder / OUT)
    left = {entry.path: _digest(np.ascontiguousarray(features.read(entry)).tobytes()) for entry in features.entries}
    failures = (folder / OUT / "failures.csv").read_text(encoding="utf-8").splitlines()[1:]
    return left | {line.partition(",")[0]: line for line in failures}


def read_label_maps(folder: Path) -> Left:
    """Digests of label maps, overlays and names of classes."""
    paths = [*(folder / OUT).rglob("*.png"), folder / OUT / "classes.txt"]
    return {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in paths}


def read_head(folder: Path) -> Left:
    """Digests of a trained head and of its scores."""
    names = ("head.safetensors", "head.json", "results.json")
    return {name: _digest((folder / OUT / name).read_bytes()) for name in names}


def read_answers(folder: Path) -> Left:
    """Answers by the number of their line."""
    lines = (folder / OUT / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return {str(number): line for number, line in enumerate(lines, 1)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


_ANY = ("noise", "half", "empty")
_FEATURES = {"run.json": _ANY, "journal.jsonl": ("noise",), "index.parquet": _ANY}
_RAW = ("--model", "raw/14", "--devices", "cpu", "--readers", "2", "--token_budget", "40")
_TRAIN = "--model raw/14 --device cpu --steps 40 --warmup 0 --batch_size 2 --crop 28 --resize 56 --save_every 2"

WORKS = {
    "extract": Work(
        ("extract", PHOTOS, "--out", OUT, *_RAW), read_features, PHOTOS, _FEATURES | {"features/*": ("half",)}, True
    ),
    "extract pooled": Work(
        ("extract", PHOTOS, "--out", OUT, "--pool", "mean", *_RAW), read_features, PHOTOS, _FEATURES, True
    ),
    "segment train": Work(
        ("segment", "train", PAIRS, "--out", OUT, *_TRAIN.split()),
        read_head,
        f"{PAIRS}/images/train",
        {"run.json": _ANY, "checkpoint.pt": _ANY, "log.jsonl": ("noise", "half"), "pictures.jsonl": ("half", "empty")},
    ),
    "segment predict": Work(
        ("segment", "predict", PHOTOS, "--head", HEAD, "--out", OUT, "--device", "cpu"),
        read_label_maps,
        PHOTOS,
        {"run.json": _ANY, "journal.jsonl": _ANY},
    ),
    "chat": Work(
        (
            *("chat", "--input", QUESTIONS, "--output", f"{OUT}/answers.jsonl", "--batch_size", "2"),
            *("--max_new_tokens", "6", "--device", "cpu"),
        ),
        read_answers,
        PHOTOS,
        {"answers.jsonl": _ANY, "answers.jsonl.run.json": _ANY, "answers.jsonl.aside.jsonl": ("noise",)},
    ),
}
"""By name; `segment train` makes the head that `segment predict` uses."""


def write_inputs(folder: Path, images: int = 36) -> None:
    """Draws photographs and pairs of noise, and writes questions; the same each time."""
    rng = np.random.default_rng(0)
    for index in range(images):
        height, width = rng.integers(40, 120, 2)
        _save(rng.integers(0, 256, (height, width, 3)), folder / PHOTOS / f"{index:03d}.png")
    (folder / PHOTOS / BROKEN).write_bytes(b"no picture")
    for split, count in (("train", 6), ("val", 3)):
        for index in range(count):
            pixels = rng.integers(0, 256, (56, 56, 3))
            _save(pixels, folder / PAIRS / "images" / split / f"{index}.png")
            _save(pixels[..., 0] // 128, folder / PAIRS / "labels" / split / f"{index}.png")
    asked = [
        {"image": f"photos/{index:03d}.png", "prompt": "What color is it?", "id": index}
        for index in range(0, images, 3)
    ]
    (folder / QUESTIONS).write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")


def _save(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
