"""Batches of drawn scenes for the training of `sail-tiny`: images, texts about them, and what these are about."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from evals.scene_expressions import draw_thing_masks, refer_to_things
from evals.scene_questions import CAPTION_PROMPT, Question, ask_about
from evals.scenes import BACKGROUNDS, COLORS, RADII, SHAPES, TEXTURES, TRAINING_SEEDS, Scene
from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD, Array
from sail_encoder.models.pixel_sail.questions import ANSWER, refer
from sail_encoder.models.pixel_sail.tokens import SEG
from tools import tiny_recipe as recipe

EXPRESSIONS = ("attribute", "attribute", "attribute", "relation", "relation", "all", "count")
PLACES = tuple(f"{row} {column}".strip() for row in ("top", "", "bottom") for column in ("left", "", "right"))

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "color": tuple(COLORS),
    "texture": TEXTURES,
    "size": tuple(RADII),
    "place": tuple(place or "center" for place in PLACES),
}
"""What is to be learned of the thing in a patch. Texts name things by all of it but their place."""
NAMING = tuple(ATTRIBUTES)[:-1]

Conversation = tuple[list[int], list[int]]
"""Token ids and labels."""

Batch = dict[str, Any]
"""Scenes of one grid and texts about them, right-padded to one length, with their labels."""


class Turn(NamedTuple):
    """A question about a scene, its answer and its kind, and the numbers of the things that it names, in order."""

    prompt: str
    answer: str
    kind: str
    targets: tuple[int, ...] = ()


class SceneBatches(IterableDataset[Batch]):
    """Endless batches; the batch of a step depends on the step alone, so that a resumed run sees the same data.

    A batch has `images`, as the model takes them; texts `input_ids` [texts, length] with `labels` and the number of the
    image that each is about, `image_of_text` [texts]; per image the masks of its texts, `mask_labels`; what each patch
    shows, `patch_labels` [images, patches, attributes]; and `aims`, tokens that are to look at things: (text, position)
    [aims, 2], how much of the things each patch shows [aims, patches], 1 at most, and which of their attributes the
    text names [aims, attributes but the place].

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
        stage, grid, form, scenes = recipe.choose_scenes(rng, step)
        first_seed = TRAINING_SEEDS.start + step * recipe.MOST_SCENES
        drawn = [recipe.draw_to_grid(seed, grid, stage) for seed in range(first_seed, first_seed + scenes)]
        talks = [write_about(scene, rng, stage, form) for scene, _ in drawn]
        prefix = torch.tensor([encode_image(self.tokenizer, grid)] * scenes)
        pixels = normalize(torch.from_numpy(np.concatenate([patches for _, patches in drawn])))
        images = {"input_ids": prefix, "pixel_values": pixels, "image_grid_hw": torch.tensor([grid] * scenes)}
        texts = [encode_text(self.tokenizer, talk) for about in talks for talk in about]
        input_ids, labels = pad(texts, self.tokenizer.pad_token_id)
        image_of_text = torch.arange(scenes).repeat_interleave(torch.tensor([len(about) for about in talks]))
        masks = [masks_of(scene, about) for (scene, _), about in zip(drawn, talks, strict=True)]
        named = {"input_ids": input_ids, "labels": labels, "image_of_text": image_of_text}
        shown = [(scene, cover(scene, grid)) for scene, _ in drawn]
        seen = torch.stack([label_patches(*of_scene) for of_scene in shown])
        asked = [(*of_scene, talk) for of_scene, about in zip(shown, talks, strict=True) for talk in about]
        aims = collect_aims(self.tokenizer, asked, texts)
        return {"images": images, **named, "mask_labels": masks, "patch_labels": seen, "aims": aims}


def collect_aims(
    tokenizer: PreTrainedTokenizerFast, asked: list[tuple[Scene, Tensor, list[Turn]]], texts: list[Conversation]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that are to look at things, in texts of one turn; see `SceneBatches` for the three tensors.

    Args:
        tokenizer: The tokenizer.
        asked: Of each text its scene, the share of each patch that each thing covers, and its turns.
        texts: Their tokens.
    """
    places, shares, named = [], [], []
    for row, ((scene, covered, turns), text) in enumerate(zip(asked, texts, strict=True)):
        for position, meant in aims_of(tokenizer, turns[0], text) if len(turns) == 1 else []:
            places.append((row, position))
            shares.append(covered[list(meant)].sum(dim=0))
            named.append(label_named(scene, turns[0].prompt, meant))
    most = torch.stack(shares) if shares else torch.zeros(0, asked[0][1].shape[1])
    return (
        torch.tensor(places, dtype=torch.long).view(-1, 2),
        most / most.amax(dim=1, keepdim=True),
        torch.tensor(named, dtype=torch.long).view(-1, len(NAMING)),
    )


def write_about(scene: Scene, rng: Generator, stage: recipe.Stage, form: str) -> list[list[Turn]]:
    """Conversations about a scene, each of which knows nothing of the others.

    In a form of several turns the caption comes last, since it gives all other answers, or first, so that these are
    read from it too.
    """
    caption = Turn(CAPTION_PROMPT, scene.caption, "caption")
    if form == "captions":
        return [[caption]]
    if form == "masks":
        shown = refer_to_things(scene, rng, recipe.MASKS_PER_SCENE, EXPRESSIONS)
        talks = [[Turn(refer(one.text).strip(), ANSWER, "mask", one.targets)] for one in shown]
        return talks or [[caption]]
    asked = ask_about(scene, rng, 3 if form == "talks" else stage.questions, stage.kinds)
    turns = [Turn(one.prompt, one.answer, one.kind, things_named(scene, one)) for one in asked]
    if form == "talks":
        return [[*turns, caption] if rng.random() < 0.5 else [caption, *turns]]
    return [[turn] for turn in turns] or [[caption]]


def things_named(scene: Scene, question: Question) -> tuple[int, ...]:
    """Numbers of the things that a question names by color, shape or both, in the order of a comparison."""
    if question.kind == "relation":
        places = [(question.prompt.find(thing.name), number) for number, thing in enumerate(scene.things)]
        return tuple(number for place, number in sorted(places) if place >= 0)
    words = set(question.prompt.rstrip("?").split())
    colors, shapes = words & set(COLORS), words & set(SHAPES)
    if not colors and not shapes:
        return ()
    return tuple(
        number
        for number, thing in enumerate(scene.things)
        if (not colors or thing.color in colors) and (not shapes or thing.shape in shapes)
    )


def aims_of(tokenizer: PreTrainedTokenizerFast, turn: Turn, text: Conversation) -> list[tuple[int, tuple[int, ...]]]:
    """Tokens of a text that are to look at things, and at which.

    They are the one that asks for a mask, the two names of a comparison, and else the one before the answer.
    """
    ids, labels = text
    if not turn.targets:
        return []
    if turn.kind == "mask":
        return [(ids.index(tokenizer.convert_tokens_to_ids(SEG)), turn.targets)]
    if turn.kind == "relation":
        shapes = set(tokenizer.convert_tokens_to_ids([f"\u0120{shape}" for shape in SHAPES]))
        names = [position for position, token in enumerate(ids) if token in shapes]
        return [(position, (number,)) for position, number in zip(names, turn.targets, strict=True)]
    return [(next(place for place, label in enumerate(labels) if label != -100) - 1, turn.targets)]


def label_named(scene: Scene, prompt: str, meant: tuple[int, ...]) -> list[int]:
    """Attributes that these things have in common and that a prompt names, as numbers, -100 for the others."""
    words = set(re.findall("[a-z]+", prompt))
    labels = []
    for name in NAMING:
        first, *others = {str(getattr(scene.things[number], name)) for number in meant}
        labels.append(-100 if others or first not in words else ATTRIBUTES[name].index(first))
    return labels


def masks_of(scene: Scene, talks: list[list[Turn]]) -> Tensor:
    """Masks that conversations ask for, bool [masks, height, width]."""
    targets = [turn.targets for talk in talks for turn in talk if turn.kind == "mask"]
    if not targets:
        return torch.zeros(0, *scene.mask.shape, dtype=torch.bool)
    things = draw_thing_masks(scene)
    return torch.from_numpy(np.stack([things[list(meant)].any(axis=0) for meant in targets]))


def label_patches(scene: Scene, shares: Tensor) -> Tensor:
    """Attributes of what fills most of each patch, int64 [rows * columns, attributes], -100 where it has none.

    Args:
        scene: What is shown.
        shares: How much of each patch each thing covers, [things, rows * columns].
    """
    share, thing = shares.max(dim=0)
    found = [[words.index(getattr(one, name)) for name, words in ATTRIBUTES.items()] for one in scene.things]
    labels = torch.tensor(found)[thing].masked_fill((share < 0.5)[:, None], -100)
    background = torch.full_like(thing, BACKGROUNDS.index(scene.background)).masked_fill(shares.sum(0) > 0, -100)
    return torch.cat((labels, background[:, None]), dim=1)


def cover(scene: Scene, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that each thing covers, [things, rows * columns]."""
    return F.adaptive_avg_pool2d(torch.from_numpy(draw_thing_masks(scene)).float(), grid).flatten(1)


def encode(tokenizer: PreTrainedTokenizerFast, grid: tuple[int, int], turns: list[Turn]) -> Conversation:
    """An image and its turns in the published format; labels are -100 where nothing is learned."""
    image, (ids, labels) = encode_image(tokenizer, grid), encode_text(tokenizer, turns)
    return image + ids, [-100] * len(image) + labels


def encode_image(tokenizer: PreTrainedTokenizerFast, grid: tuple[int, int]) -> list[int]:
    """The tokens of an image of this grid."""
    start, patch, end = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>"])
    return [start, *[patch] * (grid[0] * grid[1]), end]


def encode_text(tokenizer: PreTrainedTokenizerFast, turns: list[Turn]) -> Conversation:
    """What follows the image."""
    ids, labels = [tokenizer.bos_token_id], [-100]
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
    mean, std = (torch.tensor(x).repeat_interleave(recipe.PATCH**2) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (patches.float() / 255 - mean) / std


def collate(patches: Array, grid: tuple[int, int], rows: list[Conversation], pad_id: int) -> Batch:
    """Batch of scenes, given as uint8 patches [scenes * rows * columns, 3 * p * p], and of their conversations."""
    input_ids, labels = pad(rows, pad_id)
    grids = torch.tensor([grid] * len(rows))
    pixels = normalize(torch.from_numpy(patches))
    return {"input_ids": input_ids, "pixel_values": pixels, "image_grid_hw": grids, "labels": labels}
