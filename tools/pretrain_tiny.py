"""Trains `sail-tiny`, the embedded checkpoint: a small SAIL that learns to see by predicting the next word.

    python -m tools.pretrain_tiny --out runs/tiny
    python -m tools.pretrain_tiny --out runs/tiny          # again: goes on after a kill
    cp runs/tiny/export/* sail_encoder/tiny/
    python -m evals.tiny

Drawn scenes (`evals/scenes.py`) take the place of image-text pairs. Each image is followed by a conversation in the
published format: its caption and several questions. As in the paper's recipe the loss counts the answers alone, the
images come in mixed sizes, and easy data comes first. About an hour on one core.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.processing_sail import SailProcessor
from tools import tiny_recipe as recipe

LOG_EVERY, SAVE_EVERY, WARM_UP = 50, 250, 150


def predict(model: SailForCausalLM, batch: recipe.Batch) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocabulary] and their targets."""
    grids = torch.tensor([batch.grid] * len(batch.input_ids))
    out = model.model(batch.input_ids, pixel_values=batch.pixel_values, image_grid_hw=grids, use_cache=False)
    predicts = batch.labels[:, 1:] != -100
    return model.lm_head(out.last_hidden_state[:, :-1][predicts]), batch.labels[:, 1:][predicts]


def build_optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, constant, and a linear fall over the last two fifths."""
    return min((step + 1) / WARM_UP, 1.0, max(0.01, (steps - step) / (0.4 * steps)))


@torch.no_grad()
def evaluate(model: SailForCausalLM, tokenizer: PreTrainedTokenizerFast, scenes: int = 400) -> dict[str, float]:
    """Share of right answers under teacher forcing, by kind, on seeds not trained on; nothing is asked before.

    Captions count twice: as a whole, and for their shape word where there is one thing.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    stage = recipe.STAGES[-1]
    rng = np.random.default_rng(5)
    for seed in range(scenes):
        grid = recipe.choose_grid(rng, stage)
        scene, patches = recipe.draw_to_grid(seed, grid, stage)
        [turn] = recipe.converse(scene, rng, 1, stage.kinds)
        rows = [recipe.encode(tokenizer, grid, [turn])]
        batch = recipe.Batch(recipe.normalize(torch.from_numpy(patches)), grid, *recipe.pad(rows, 0))
        logits, targets = predict(model, batch)
        said, alone = logits.argmax(-1), len(scene.things) == 1
        kind = f"{turn.kind}, {'one thing' if alone else 'several'}"
        asked[kind] += 1
        right[kind] += bool((said == targets).all())
        if alone and turn.kind == "caption":
            asked["shape word of the caption, one thing"] += 1
            right["shape word of the caption, one thing"] += scene.things[0].shape in tokenizer.decode(said).split()
    return {kind: round(right[kind] / asked[kind], 3) for kind in sorted(asked)}


def train(out: Path, steps: int, rate: float, workers: int) -> None:
    """Trains, leaving `log.jsonl`, a resumable `state.pt` and, at the end, `export/`."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe.build_tokenizer()
    model = SailForCausalLM(recipe.build_config(tokenizer))
    model.set_attn_implementation("eager")  # a fifth faster than sdpa for rows this short on a CPU
    recipe.whiten(model.model.vis_embed, recipe.SceneBatches(tokenizer, 0).make(recipe.STAGES[-1].until).pixel_values)
    model.model.vis_embed.requires_grad_(False)  # the variances differ so much that any step would undo it
    optimizers = build_optimizers(model, rate)
    first = _resume(out / "state.pt", model, optimizers)
    data = recipe.SceneBatches(tokenizer, first)
    batches = iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
    started, losses, seen = time.time(), [], 0
    for step in range(first, steps):
        batch = next(batches)
        losses.append(_step(model, optimizers, batch, rate * schedule(step, steps)))
        seen += len(batch.input_ids)
        if (step + 1) % LOG_EVERY == 0:
            pace = (time.time() - started) / len(losses)
            row: dict[str, Any] = {"step": step + 1, "loss": round(float(np.mean(losses)), 4)}
            row |= {"images": seen, "seconds_a_step": round(pace, 3)}
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                row["accuracy"] = evaluate(model, tokenizer)
                _save(out / "state.pt", step + 1, model, optimizers)
            _log(out / "log.jsonl", row)
            started, losses, seen = time.time(), [], 0
    _export(out, model, tokenizer, steps)


def _step(model: SailForCausalLM, optimizers: list[torch.optim.Optimizer], batch: recipe.Batch, rate: float) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        logits, targets = predict(model, batch)
    loss = F.cross_entropy(logits.float(), targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _log(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


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


def _export(out: Path, model: SailForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Writes the checkpoint in bfloat16, with a summary of its training."""
    folder = out / "export"
    model.to(torch.bfloat16).save_pretrained(folder)
    images = SailImageProcessor(patch_size=recipe.PATCH, max_tokens=recipe.MAX_TOKENS)
    images.save_pretrained(folder)
    SailProcessor(images, tokenizer).save_pretrained(folder)
    log = {row["step"]: row for row in map(json.loads, (out / "log.jsonl").read_text().splitlines())}
    accuracy = {step: row["accuracy"] for step, row in log.items() if "accuracy" in row}
    figures = recipe.summary(
        steps=steps,
        images=sum(row["images"] for row in log.values()),
        loss={step: row["loss"] for step, row in log.items() if step % (10 * LOG_EVERY) == 0},
        accuracy=accuracy[max(accuracy)],
    )
    (folder / "training.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=recipe.STAGES[-1].until)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.rate, arguments.workers)
