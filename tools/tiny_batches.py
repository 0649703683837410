"""Batches of drawn scenes for the training of `sail-tiny`: images, texts about them, and what these are about."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from evals.scene_expressions import draw_thing_masks
from evals.scenes import TRAINING_SEEDS, Scene
from sail_encoder.images.decoding import IMAGENET_MEAN, IMAGENET_STD, Array
from tools import tiny_recipe as recipe
from tools.tiny_aims import collect_aims, label_patches
from tools.tiny_texts import MASK, Conversation, Turn, encode_image, encode_text, pad, write_about

Batch = dict[str, Any]
"""Scenes of one grid and texts about them, right-padded to one length, with their labels."""


class SceneBatches(IterableDataset[Batch]):
    """Endless batches; the batch of a step depends on the step alone, so that a resumed run sees the same data.

    A batch has `images`, as the model takes them; texts `input_ids` [texts, length] with `labels` and the number of the
    image that each is about, `image_of_text` [texts]; the masks that they ask for, `mask_labels` [masks, height,
    width], and how many each image has, `masks_of_image`; what each patch shows, `patch_labels` [images, patches,
    attributes]; and `aims`, tokens that are to look at things, as `Aims`.

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
        masks = [masks_of(scene, about, grid) for (scene, _), about in zip(drawn, talks, strict=True)]
        named = {"input_ids": input_ids, "labels": labels, "image_of_text": image_of_text}
        shown = [(scene, cover(scene, grid)) for scene, _ in drawn]
        seen = torch.stack([label_patches(*of_scene) for of_scene in shown])
        asked = [(*of_scene, talk) for of_scene, about in zip(shown, talks, strict=True) for talk in about]
        aims = collect_aims(self.tokenizer, asked, texts, rng)
        masked = {"mask_labels": torch.cat(masks), "masks_of_image": [len(of_image) for of_image in masks]}
        return {"images": images, **named, **masked, "patch_labels": seen, "aims": aims}


def masks_of(scene: Scene, talks: list[list[Turn]], grid: tuple[int, int]) -> Tensor:
    """Masks that conversations ask for, at the size to which the scene is stretched, bool [masks, height, width]."""
    size = grid[0] * recipe.PATCH, grid[1] * recipe.PATCH
    targets = [turn.targets for talk in talks for turn in talk if turn.kind == MASK and turn.targets]
    if not targets:
        return torch.zeros(0, *size, dtype=torch.bool)
    things = torch.from_numpy(draw_thing_masks(scene))
    masks = torch.stack([things[list(meant)].any(dim=0) for meant in targets])
    return F.interpolate(masks[None].byte(), size, mode="nearest-exact")[0].bool()


def cover(scene: Scene, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that each thing covers, [things, rows * columns]."""
    return F.adaptive_avg_pool2d(torch.from_numpy(draw_thing_masks(scene)).float(), grid).flatten(1)


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
