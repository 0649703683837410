"""Recipe of `sail-tiny`: its tokenizer, its sizes, and the scenes that each training step draws."""

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
from transformers import AddedToken, PreTrainedTokenizerFast

from evals.scene_expressions import refer_to_things
from evals.scene_questions import CAPTION_PROMPT, KINDS, ask_about
from evals.scenes import RADII, TRAINING_SEEDS, Scene, draw_scene
from sail_encoder.images.decoding import Array
from sail_encoder.images.patches import patchify
from sail_encoder.models.pixel_sail.configuration_pixel_sail import PixelSailConfig
from sail_encoder.models.pixel_sail.questions import refer
from sail_encoder.models.pixel_sail.tokens import SEG, VISUAL_PROMPTS, add_pixel_tokens
from sail_encoder.models.sail.config_file import UNUSED_VISION_TOKENS

PATCH = 14
MAX_TOKENS = 256
VISION_TOKENS = ("<vision>", "<vpatch>", "<vrow_sep>", "<vframe_sep>", "</vision>", "<|vis_cls|>")
TOKENS_PER_STEP = 4000
MOST_SCENES = 80

MASKS_PER_SCENE = 6
LENGTHS = {"captions": 40, "masks": 22 * MASKS_PER_SCENE, "talks": 140}
"""Tokens of the texts about a scene by their form, roughly; questions have 16 each."""


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
        questions: How many are asked about a scene, each on its own.
        captions: Share of the steps whose scenes are described instead.
        masks: Share of the steps in which masks are asked for instead.
        talks: Share of the steps with one conversation of several turns about each scene instead.
    """

    until: int
    things: tuple[int, ...]
    sides: tuple[int, int]
    patches: int
    sizes: tuple[str, ...] = tuple(RADII)
    kinds: tuple[str, ...] = tuple(KINDS)
    questions: int = 4
    captions: float = 0.1
    masks: float = 0.0
    talks: float = 0.0


MOSTLY_SHAPES = (*KINDS, *["shape"] * 4, "corners", "corners", "outline")

ANY_NUMBER = (1, 1, 2, 2, 3, 3, 4)
BINDING = ("shape", "color", "where", "exists", "relation", "at_place", "size", "texture")
LAST_KINDS = (*KINDS, *BINDING, "shape", "shape", "corners", "exists", "exists", *["relation"] * 4)

STAGES = (
    Stage(
        1000,
        (1,),
        (6, 8),
        49,
        ("medium", "large"),
        kinds=("shape", "corners", "outline", "color", "where"),
        captions=0.4,
    ),
    Stage(2000, (1,), (5, 13), 120, kinds=MOSTLY_SHAPES, captions=0.4),
    Stage(2600, (2, 3), (5, 9), 64, kinds=BINDING, questions=12, masks=0.15),
    Stage(
        6600,
        ANY_NUMBER,
        (6, 16),
        MAX_TOKENS,
        kinds=LAST_KINDS,
        questions=16,
        captions=0.1,
        masks=0.25,
        talks=0.3,
    ),
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
    add_pixel_tokens(fast)
    return fast


def _sample_texts(count: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + count):
        scene = draw_scene(seed, height=96, width=96)
        yield from (scene.caption, CAPTION_PROMPT)
        for question in ask_about(scene, rng, 8):
            yield from (question.prompt, question.answer)
        for expression in refer_to_things(scene, rng, 2):
            yield refer(expression.text)


def build_config(tokenizer: PreTrainedTokenizerFast) -> PixelSailConfig:
    """Sizes of 5 million parameters, a rotary base that fits grids of up to 20 patches a side, a small mask head."""
    start, patch, end, seg = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>", SEG])
    return PixelSailConfig(
        seg_token_id=seg,
        visual_prompt_token_ids=tokenizer.convert_tokens_to_ids(list(VISUAL_PROMPTS)),
        mask_channels=64,
        head_channels=64,
        train_num_points=512,
        text_weight=2.0,
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


def choose_scenes(rng: Generator, step: int) -> tuple[Stage, tuple[int, int], str, int]:
    """Stage and grid of a step, the form of its texts, and how many scenes it has room for."""
    stage = next((stage for stage in STAGES if step < stage.until), STAGES[-1])
    grid = choose_grid(rng, stage)
    shares = {"captions": stage.captions, "masks": stage.masks, "talks": stage.talks}
    form = str(rng.choice([*shares, "questions"], p=[*shares.values(), 1 - sum(shares.values())]))
    tokens = LENGTHS.get(form, 16 * stage.questions)
    return stage, grid, form, min(MOST_SCENES, TOKENS_PER_STEP // (grid[0] * grid[1] + tokens))


def count_images(first: int, last: int) -> int:
    """Number of scenes that a training sees from one step up to another."""
    return sum(choose_scenes(np.random.default_rng((7, step)), step)[-1] for step in range(first, last))


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


def summary(**figures: Any) -> dict[str, Any]:
    """Notes beside the weights about where they come from."""
    about = (
        "A demonstration model of 5 million parameters, trained on drawn scenes (tools/pretrain_tiny.py), so that "
        "every command works without a download. It is not a strong model: use ByteDance-Seed/SAIL-7B for real work."
    )
    return {"about": about, **figures}
