"""Trains `sail-tiny`, the embedded checkpoint: a small SAIL that learns to see by predicting the next word.

    python -m tools.pretrain_tiny --out runs/tiny
    timeout 50m python -m tools.pretrain_tiny --out runs/tiny     # a stretch of it; the same command goes on
    python -m tools.pretrain_tiny --out runs/further --start runs/tiny/export
    cp runs/tiny/export/* sail_encoder/tiny/
    python -m evals.tiny

Drawn scenes (`evals/scenes.py`) take the place of image-text pairs. Each image is followed by a conversation in the
published format: its caption and several questions. As in the paper's recipe the loss counts the answers alone, the
images come in mixed sizes, and easy data comes first. About an hour on one core that multiplies bfloat16 by itself.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from heads.recipe import Recipe
from heads.trainer import Trainer, read_log
from sail_encoder.chat.fingerprint import fingerprint_checkpoint
from sail_encoder.io.devices import choose_device
from sail_encoder.io.errors import UserError, in_one_line
from sail_encoder.io.files import write_json
from sail_encoder.io.signals import leave_signals_to_parent
from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.processing_sail import SailProcessor
from tools import tiny_recipe as recipe

LOG_EVERY, SAVE_EVERY, WARM_UP = 50, 250, 150


def predict(model: SailForCausalLM, batch: recipe.Batch) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocabulary] and their targets."""
    inputs = {name: values.to(model.device) for name, values in batch.items()}
    labels = inputs.pop("labels")
    out = model.model(**inputs, use_cache=False)
    predicts = labels[:, 1:] != -100
    return model.lm_head(out.last_hidden_state[:, :-1][predicts]), labels[:, 1:][predicts]


def loss_of(model: SailForCausalLM, batch: recipe.Batch) -> Tensor:
    """Mean cross-entropy over the tokens of the answers."""
    with torch.autocast(model.device.type, torch.bfloat16):
        logits, targets = predict(model, batch)
    return F.cross_entropy(logits.float(), targets)


def build_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


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
        batch = recipe.collate(patches, grid, rows, 0)
        logits, targets = predict(model, batch)
        said, alone = logits.argmax(-1), len(scene.things) == 1
        kind = f"{turn.kind}, {'one thing' if alone else 'several'}"
        asked[kind] += 1
        right[kind] += bool((said == targets).all())
        if alone and turn.kind == "caption":
            asked["shape word of the caption, one thing"] += 1
            right["shape word of the caption, one thing"] += scene.things[0].shape in tokenizer.decode(said).split()
    return {kind: round(right[kind] / asked[kind], 3) for kind in sorted(asked)}


def build_model(tokenizer: PreTrainedTokenizerFast, start: Path | None) -> SailForCausalLM:
    """The model before the first step: new, or with the weights of a checkpoint."""
    torch.manual_seed(0)
    if start is None:
        model = SailForCausalLM(recipe.build_config(tokenizer))
        patches = recipe.SceneBatches(tokenizer, 0).make(recipe.STAGES[-1].until)["pixel_values"]
        recipe.whiten(model.model.vis_embed, patches)
    elif not (start / "config.json").exists():
        raise UserError(f"{start} holds no checkpoint to start from; name the export of a training")
    else:
        model = SailForCausalLM.from_pretrained(start, dtype=torch.float32)
        if model.config.vocab_size != len(tokenizer):
            raise UserError(f"{start} has {model.config.vocab_size} tokens, but these scenes {len(tokenizer)}")
    model.set_attn_implementation("eager")  # a fifth faster than sdpa for rows this short on a CPU
    model.model.vis_embed.requires_grad_(False)  # the variances differ so much that any step would undo it
    return model


def train(
    out: Path,
    steps: int,
    learning_rate: float,
    workers: int = 1,
    start: Path | None = None,
    device: str = "cpu",
) -> int:
    """Trains, leaving `log.jsonl`, `checkpoint.pt`, from which the same command goes on, and at the end `export/`.

    Args:
        out: Folder of the training.
        steps: How many steps the whole training has.
        learning_rate: Its highest value.
        workers: Processes that draw scenes.
        start: Folder of the checkpoint to begin with; a new model by default.
        device: Where to train.

    Returns:
        0, or the exit status where a signal has stopped it.
    """
    tokenizer = recipe.build_tokenizer()
    model = build_model(tokenizer, start).to(choose_device(device))
    trainer = Trainer(
        model,
        Recipe((learning_rate,), steps=steps, schedule="trapezoid", warmup=min(WARM_UP, steps // 10), clip=1.0),
        loss_of,
        optimizers=build_optimizers(model, learning_rate),
        checkpoint=out / "checkpoint.pt",
        log=out / "log.jsonl",
        settings={
            "steps": steps,
            "learning_rate": learning_rate,
            "start": start and fingerprint_checkpoint(start),
            "tokens_per_step": recipe.TOKENS_PER_STEP,
            "stages": [asdict(stage) for stage in recipe.STAGES],
        },
    )
    trainer.resume()
    status = trainer.run(
        partial(read_batches, tokenizer, workers),
        log_every=LOG_EVERY,
        save_every=SAVE_EVERY,
        validate_every=SAVE_EVERY,
        validate=lambda: {"accuracy": evaluate(model, tokenizer)},
    )
    if not status:
        _export(out, model, tokenizer, steps)
    return status


def read_batches(
    tokenizer: PreTrainedTokenizerFast, workers: int, first: int, last: int
) -> Generator[recipe.Batch, None, None]:
    """The batches of these steps, drawn ahead by other processes."""
    loader = DataLoader(
        recipe.SceneBatches(tokenizer, first),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_signals_to_parent,
    )
    yield from islice(loader, last - first)


def _export(out: Path, model: SailForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Writes the checkpoint in bfloat16, with a summary of its training."""
    folder = out / "export"
    accuracy = evaluate(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    images = SailImageProcessor(patch_size=recipe.PATCH, max_tokens=recipe.MAX_TOKENS)
    images.save_pretrained(folder)
    SailProcessor(images, tokenizer).save_pretrained(folder)
    losses = {line["step"]: round(line["loss"], 4) for line in read_log(out / "log.jsonl") if "loss" in line}
    figures = recipe.summary(
        steps=steps,
        images=recipe.count_images(steps),
        loss={step: loss for step, loss in losses.items() if step % (10 * LOG_EVERY) == 0},
        accuracy=accuracy,
    )
    write_json(folder / "training.json", figures)


def main() -> int:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--steps", type=int, default=recipe.STAGES[-1].until)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    try:
        return train(**vars(parser.parse_args()))
    except UserError as error:
        print(f"pretrain_tiny: {in_one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
