"""Trains `sail-tiny`, the embedded checkpoint: a small SAIL that learns to see by predicting the next word.

    python tools/pretrain_tiny.py --out runs/tiny --steps 16000
    python tools/pretrain_tiny.py --out runs/tiny --steps 16000        # again: goes on after a kill
    cp runs/tiny/export/* sail_encoder/tiny/

Drawn scenes (`evals/scenes.py`) take the place of image-text pairs. Each image is followed by a conversation in the
published format: its caption and several questions in random order. As in the paper's recipe the loss counts the
answers alone, the images come in mixed sizes, and easy data comes first: one thing per image, then up to four.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import AddedToken, PreTrainedTokenizerFast

from evals.scene_questions import CAPTION_PROMPT, Question, ask_about
from evals.scenes import TRAINING_SEEDS, Scene, draw_scene
from sail_encoder.pixels import IMAGENET_MEAN, IMAGENET_STD, patchify
from sail_encoder.sail.configuration_sail import SailConfig
from sail_encoder.sail.image_processing_sail import SailImageProcessor
from sail_encoder.sail.modeling_sail import SailForCausalLM

PATCH = 14
MAX_TOKENS = 256
VISION_TOKENS = ("<vision>", "<vpatch>", "<vrow_sep>", "<vframe_sep>", "</vision>", "<|vis_cls|>")
QUESTIONS_PER_SCENE = 4


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


@dataclass
class Batch:
    """Scenes of one grid with their conversations, right-padded to one length."""

    pixel_values: Tensor
    grid: tuple[int, int]
    input_ids: Tensor
    labels: Tensor


class SceneBatches(IterableDataset[Batch]):
    """Endless batches; the batch of a step depends on the step alone, so that a resumed run sees the same data."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch_size: int, first_step: int, easy_steps: int) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.first_step = first_step
        self.easy_steps = easy_steps

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step = self.first_step + (worker.id if worker else 0)
        while True:
            yield self.make(step)
            step += worker.num_workers if worker else 1

    def make(self, step: int) -> Batch:
        """Draws the batch of a step."""
        rng = np.random.default_rng((7, step))
        easy = step < self.easy_steps
        grid = _choose_grid(rng, easy)
        first_seed = TRAINING_SEEDS.start + step * self.batch_size
        scenes = [
            _draw_to_grid(seed, grid, 1 if easy else (1, 1, 2, 3, 4))
            for seed in range(first_seed, first_seed + self.batch_size)
        ]
        patches = torch.from_numpy(np.concatenate([patches for _, patches in scenes]))
        turns = [_converse(scene, rng) for scene, _ in scenes]
        rows = [encode_conversation(self.tokenizer, grid, conversation) for conversation in turns]
        return Batch(normalize(patches), grid, *_pad(rows, self.tokenizer.pad_token_id))


def _choose_grid(rng: np.random.Generator, easy: bool) -> tuple[int, int]:
    low, high, most = (6, 9, 64) if easy else (5, 18, 200)
    while True:
        rows, columns = (round(math.exp(rng.uniform(math.log(low), math.log(high)))) for _ in range(2))
        if 30 <= rows * columns <= most:
            return rows, columns


def _draw_to_grid(seed: int, grid: tuple[int, int], things: int | tuple[int, ...]) -> tuple[Scene, np.ndarray]:
    """Draws a scene a little smaller than the grid and stretches it, as the native rule does with most images."""
    rng = np.random.default_rng((11, seed))
    height, width = (side * PATCH - int(rng.integers(PATCH)) * int(rng.integers(2)) for side in grid)
    scene = draw_scene(seed, things, height, width)
    image = Image.fromarray(scene.image).resize((grid[1] * PATCH, grid[0] * PATCH), Image.Resampling.BILINEAR)
    return scene, patchify(np.asarray(image), PATCH)


def _converse(scene: Scene, rng: np.random.Generator) -> list[Question]:
    turns = [Question(CAPTION_PROMPT, scene.caption, "caption"), *ask_about(scene, rng, QUESTIONS_PER_SCENE)]
    return [turns[i] for i in rng.permutation(len(turns))]


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast, grid: tuple[int, int], turns: list[Question]
) -> tuple[list[int], list[int]]:
    """Token ids and labels of an image and its turns in the published format; -100 where nothing is learned."""
    start, patch, end = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>"])
    ids = [start, *[patch] * (grid[0] * grid[1]), end, tokenizer.bos_token_id]
    labels = [-100] * len(ids)
    for turn in turns:
        prompt, answer = tokenizer([f"[INST] {turn.prompt} [/INST]", turn.answer], add_special_tokens=False).input_ids
        ids += [*prompt, *answer, tokenizer.eos_token_id]
        labels += [*[-100] * len(prompt), *answer, tokenizer.eos_token_id]
    return ids, labels


def _pad(rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
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


def build_model(tokenizer: PreTrainedTokenizerFast) -> SailForCausalLM:
    """A SAIL of 5 million parameters whose rotary base fits grids of up to 20 patches a side."""
    start, patch, end = tokenizer.convert_tokens_to_ids(["<vision>", "<vpatch>", "</vision>"])
    config = SailConfig(
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
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return SailForCausalLM(config)


def predict(model: SailForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocabulary] and their targets."""
    grids = torch.tensor([batch.grid] * len(batch.input_ids))
    out = model.model(batch.input_ids, pixel_values=batch.pixel_values, image_grid_hw=grids, use_cache=False)
    predicts = batch.labels[:, 1:] != -100
    return model.lm_head(out.last_hidden_state[:, :-1][predicts]), batch.labels[:, 1:][predicts]


def build_optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def evaluate(model: SailForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: int = 256) -> dict[str, float]:
    """Share of answers that are right word for word under teacher forcing, by kind, on seeds not trained on."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    rng = np.random.default_rng(5)
    for seed in range(scenes):
        grid = _choose_grid(rng, easy=False)
        scene, patches = _draw_to_grid(seed, grid, (1, 1, 2, 3, 4))
        turns = _converse(scene, rng)
        batch = Batch(
            normalize(torch.from_numpy(patches)), grid, *_pad([encode_conversation(tokenizer, grid, turns)], 0)
        )
        logits, targets = predict(model, batch)
        hits, ends = (logits.argmax(-1) == targets).tolist(), (targets == tokenizer.eos_token_id).nonzero().flatten()
        start = 0
        for turn, end in zip(turns, ends.tolist(), strict=True):
            kind = turn.kind + (f"_{min(len(scene.things), 2)}" if turn.kind == "caption" else "")
            asked[kind] += 1
            right[kind] += all(hits[start:end])
            start = end + 1
    return {kind: round(right[kind] / asked[kind], 3) for kind in sorted(asked)}


def train(out: Path, steps: int, batch_size: int, rate: float, workers: int) -> None:
    """Trains, leaving `log.jsonl`, a resumable `state.pt` and, at the end, `export/`."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    optimizers = build_optimizers(model, rate)
    first = _resume(out / "state.pt", model, optimizers)
    data = SceneBatches(tokenizer, batch_size, first, easy_steps=steps // 8)
    batches = iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4))
    started, losses = time.time(), []
    for step in range(first, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits, targets = predict(model, next(batches))
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            row: dict[str, Any] = {
                "step": step + 1,
                "loss": round(float(np.mean(losses)), 4),
                "seconds_a_step": round((time.time() - started) / len(losses), 3),
            }
            if (step + 1) % 500 == 0:
                row["accuracy"] = evaluate(model, tokenizer)
                _save(out / "state.pt", step + 1, model, optimizers)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            started, losses = time.time(), []
    _export(out / "export", model, tokenizer)


def _resume(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _save(path: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _export(folder: Path, model: SailForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SailImageProcessor(patch_size=PATCH, max_tokens=MAX_TOKENS).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.batch_size, arguments.rate, arguments.workers)
