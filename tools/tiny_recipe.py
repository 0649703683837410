"""Recipe of `sail-tiny`: its tokenizer, its sizes, and the drawn scenes of each training step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info
from transformers import AddedToken, PreTrainedTokenizerFast

from evals.scene_questions import CAPTION_PROMPT, KINDS, Question, ask_about
from evals.scenes import RADII, TRAINING_SEEDS, Scene, draw_scene
from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD, Array
from sail_encoder.images.patches import patchify
from sail_encoder.models.sail.config_file import UNUSED_VISION_TOKENS
from sail_encoder.models.sail.configuration_sail import SailConfig

PATCH = 14
MAX_TOKENS = 256
VISION_TOKENS = ("<vision>", "<vpatch>", "<vrow_sep>", "<vframe_sep>", "</vision>", "<|vis_cls|>")
TOKENS_PER_STEP = 8000
MOST_SCENES = 160

TEXT_TOKENS = {1: 20, 4: 60}
"""Length of a conversation of so many turns, roughly."""

Conversation = tuple[list[int], list[int]]
"""Token ids and labels."""


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        until: Step at which it ends.
        things: Numbers of things in a scene.
        sides: Shortest and longest side of a grid.
        patches: Patches of a grid at most.
        sizes: Sizes of the things.
        kinds: Kinds of questions, the more often named the more often asked.
        long: Share of the steps whose conversations have four turns. In the others there is one, about which nothing
            has been said before, and there is room for more scenes.
    """

    until: int
    things: tuple[int, ...]
    sides: tuple[int, int]
    patches: int
    sizes: tuple[str, ...] = tuple(RADII)
    kinds: tuple[str, ...] = tuple(KINDS)
    long: float = 1.0


MOSTLY_SHAPES = (*KINDS, *["shape"] * 4, "corners", "corners", "outline")

STAGES = (
    Stage(500, (1,), (6, 8), 49, ("medium", "large"), ("shape", "corners", "outline", "color", "where"), long=0.0),
    Stage(1100, (1,), (5, 13), 120, kinds=MOSTLY_SHAPES, long=0.1),
    Stage(1600, (1, 1, 1, 2, 3, 4), (5, 20), MAX_TOKENS, long=0.2),
)
"""Easy scenes first: outlines are learned on single large things, binding and counting on several of any size."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges are the words of the scenes; any other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_sample_texts(3000), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken(mark, lstrip=True, rstrip=True) for mark in ("[INST]", "[/INST]")])
    fast.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    return fast


def _sample_texts(count: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + count):
        scene = draw_scene(seed, height=96, width=96)
        yield from (scene.caption, CAPTION_PROMPT)
        for question in ask_about(scene, rng, 8):
            yield from (question.prompt, question.answer)


def build_config(tokenizer: PreTrainedTokenizerFast) -> SailConfig:
    """Sizes of 5 million parameters, and a rotary base that fits grids of up to 20 patches a side."""
    start, patch, end = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>"])
    return SailConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        rms_norm_eps=1e-5,
        sliding_window=None,
        vision_patch_size=PATCH,
        vision_start_token_id=start,
        image_token_id=patch,
        vision_end_token_id=end,
        unused_vision_token_ids=tokenizer.convert_tokens_to_ids(list(UNUSED_VISION_TOKENS)),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def whiten(patch_embedding: nn.Linear, patches: Tensor) -> None:
    """Sets a patch embedding to the principal components of patches [count, 3 * p * p], each scaled to equal variance.

    Random weights hand on what varies most, the mean color of a patch, and hide its edges: nine tenths of the variance
    of drawn patches lie in six of 588 components. Components that are mostly grain are held back by a small constant.
    """
    centered = patches - patches.mean(dim=0)
    variances, components = torch.linalg.eigh(centered.T @ centered / len(patches))
    kept = patch_embedding.out_features
    scales = 0.4 / (variances[-kept:] + 0.1).sqrt()
    patch_embedding.weight.copy_((components[:, -kept:] * scales).T)


Batch = dict[str, Tensor]
"""Scenes of one grid with their conversations, right-padded to one length, as the model takes them, and `labels`."""


def collate(patches: Array, grid: tuple[int, int], rows: list[Conversation], pad_id: int) -> Batch:
    """Batch of scenes, given as uint8 patches [scenes * rows * columns, 3 * p * p], and of their conversations."""
    input_ids, labels = pad(rows, pad_id)
    grids = torch.tensor([grid] * len(rows))
    pixels = normalize(torch.from_numpy(patches))
    return {"input_ids": input_ids, "pixel_values": pixels, "image_grid_hw": grids, "labels": labels}


class SceneBatches(IterableDataset[Batch]):
    """Endless batches; the batch of a step depends on the step alone, so that a resumed run sees the same data.

    Args:
        tokenizer: The tokenizer.
        first_step: Where to begin.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, first_step: int) -> None:
        self.tokenizer = tokenizer
        self.first_step = first_step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step = self.first_step + (worker.id if worker else 0)
        while True:
            yield self.make(step)
            step += worker.num_workers if worker else 1

    def make(self, step: int) -> Batch:
        """Draws the batch of a step: as many scenes as its grid leaves room for."""
        rng = np.random.default_rng((7, step))
        stage, grid, turns, scenes = choose_scenes(rng, step)
        first_seed = TRAINING_SEEDS.start + step * MOST_SCENES
        drawn = [draw_to_grid(seed, grid, stage) for seed in range(first_seed, first_seed + scenes)]
        patches = np.concatenate([patches for _, patches in drawn])
        rows = [encode(self.tokenizer, grid, converse(scene, rng, turns, stage.kinds)) for scene, _ in drawn]
        return collate(patches, grid, rows, self.tokenizer.pad_token_id)


def choose_scenes(rng: Generator, step: int) -> tuple[Stage, tuple[int, int], int, int]:
    """Stage and grid of a step, turns of its conversations, and how many scenes it has room for."""
    stage = next((stage for stage in STAGES if step < stage.until), STAGES[-1])
    grid = choose_grid(rng, stage)
    turns = 4 if rng.random() < stage.long else 1
    return stage, grid, turns, min(MOST_SCENES, TOKENS_PER_STEP // (grid[0] * grid[1] + TEXT_TOKENS[turns]))


def count_images(steps: int) -> int:
    """Number of scenes that a training of so many steps sees."""
    return sum(choose_scenes(np.random.default_rng((7, step)), step)[-1] for step in range(steps))


def choose_grid(rng: Generator, stage: Stage) -> tuple[int, int]:
    """Rows and columns, evenly over their logarithms."""
    low, high = (math.log(side) for side in stage.sides)
    while True:
        rows, columns = (round(math.exp(rng.uniform(low, high))) for _ in range(2))
        if rows * columns <= stage.patches:
            return rows, columns


def draw_to_grid(seed: int, grid: tuple[int, int], stage: Stage) -> tuple[Scene, Array]:
    """Draws a scene a little smaller than the grid and stretches it, as the native rule does with most images."""
    rng = np.random.default_rng((11, seed))
    height, width = (side * PATCH - int(rng.integers(PATCH)) * int(rng.integers(2)) for side in grid)
    scene = draw_scene(seed, stage.things, height, width, stage.sizes)
    image = Image.fromarray(scene.image).resize((grid[1] * PATCH, grid[0] * PATCH), Image.Resampling.BILINEAR)
    return scene, patchify(np.asarray(image), PATCH)


def converse(scene: Scene, rng: Generator, turns: int, kinds: tuple[str, ...]) -> list[Question]:
    """The caption and questions in random order; a single turn is one of them."""
    caption = Question(CAPTION_PROMPT, scene.caption, "caption")
    asked = [caption, *ask_about(scene, rng, max(1, turns - 1), kinds)]
    if turns == 1:
        return [asked[int(rng.random() < 0.6)]] if len(asked) > 1 else asked
    return [asked[index] for index in rng.permutation(len(asked))]


def encode(tokenizer: PreTrainedTokenizerFast, grid: tuple[int, int], turns: list[Question]) -> Conversation:
    """An image and its turns in the published format; labels are -100 where nothing is learned."""
    start, patch, end = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>"])
    ids = [start, *[patch] * (grid[0] * grid[1]), end, tokenizer.bos_token_id]
    labels = [-100] * len(ids)
    for turn in turns:
        prompt, answer = tokenizer([f"[INST] {turn.prompt} [/INST]", turn.answer], add_special_tokens=False).input_ids
        ids += [*prompt, *answer, tokenizer.eos_token_id]
        labels += [*[-100] * len(prompt), *answer, tokenizer.eos_token_id]
    return ids, labels


def pad(rows: list[Conversation], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and labels, each [rows, longest]."""
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), -100)
    for row, (ids, targets) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(targets)] = torch.tensor(targets)
    return input_ids, labels


def normalize(patches: Tensor) -> Tensor:
    """uint8 patches to what the model takes, float32."""
    mean, std = (torch.tensor(x).repeat_interleave(PATCH**2) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (patches.float() / 255 - mean) / std


def summary(**figures: Any) -> dict[str, Any]:
    """Notes beside the weights about where they come from."""
    about = (
        "A demonstration model of 5 million parameters, trained on drawn scenes (tools/pretrain_tiny.py), so that "
        "every command works without a download. It is not a strong model: use ByteDance-Seed/SAIL-7B for real work."
    )
    return {"about": about, **figures}
