"""Trains `sail-tiny`, the embedded checkpoint: a small SAIL that learns to see by predicting the next word.

    python -m tools.pretrain_tiny --out runs/tiny
    timeout 50m python -m tools.pretrain_tiny --out runs/tiny     # a stretch of it; the same command goes on
    python -m tools.pretrain_tiny --out runs/further --start runs/tiny/export --first 3200
    cp runs/tiny/export/* sail_encoder/tiny/
    python -m evals.tiny

Drawn scenes (`evals/scenes.py`) take the place of image-text pairs. Each image is followed by a conversation in the
published format: its caption, several questions, and masks of what is referred to. As in the paper's recipe the loss
counts the answers alone, the images come in mixed sizes, and easy data comes first; masks add their losses as in
Pixel-SAIL. `--precision float32` is for processors that do not multiply bfloat16 by themselves.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from heads.recipe import Recipe
from heads.trainer import Trainer, read_log
from sail_encoder.chat.fingerprint import fingerprint_checkpoint
from sail_encoder.io.devices import choose_device
from sail_encoder.io.errors import UserError, in_one_line
from sail_encoder.io.files import read_json, write_json
from sail_encoder.io.signals import leave_signals_to_parent
from sail_encoder.models.pixel_sail.modeling_pixel_sail import PixelSailForCausalLM
from sail_encoder.models.sail.config_file import HEAD_MODULES
from sail_encoder.models.sail.configuration_sail import SailConfig
from sail_encoder.models.sail.image_processing_sail import SailImageProcessor
from sail_encoder.models.sail.modeling_sail import SailForCausalLM
from sail_encoder.models.sail.processing_sail import SailProcessor
from tools import tiny_batches as batches
from tools import tiny_recipe as recipe
from tools import tiny_texts as texts
from tools.tiny_losses import EARLY, LOOKING_HEADS, Student, loss_of

LOG_EVERY, SAVE_EVERY, WARM_UP = 50, 250, 150
BFLOAT16, FLOAT32 = "bfloat16", "float32"
WEIGHTS, SUMMARY, HEAD = "model.safetensors", "training.json", "mask_head."


def predict(model: SailForCausalLM, batch: batches.Batch) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocabulary] and their targets."""
    inputs = {name: values.to(model.device) for name, values in batch.items()}
    labels = inputs.pop("labels")
    out = model.model(**inputs, use_cache=False)
    predicts = labels[:, 1:] != -100
    return model.lm_head(out.last_hidden_state[:, :-1][predicts]), labels[:, 1:][predicts]


def build_optimizers(model: nn.Module, learning_rate: float, precision: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, heads and norms.

    In float32 it is AdamW for all of them: Muon computes in bfloat16.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    adam = partial(torch.optim.AdamW, lr=learning_rate, betas=(0.9, 0.98))
    if precision != BFLOAT16:
        return [adam([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        adam(others, weight_decay=0.0),
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
        caption, questions = (texts.write_about(scene, rng, stage, form) for form in ("captions", "questions"))
        [turn] = caption[0] if rng.random() < 0.4 else questions[0]
        rows = [texts.encode(tokenizer, grid, [turn])]
        batch = batches.collate(patches, grid, rows, 0)
        logits, targets = predict(model, batch)
        said, alone = logits.argmax(-1), len(scene.things) == 1
        kind = f"{turn.kind}, {'one thing' if alone else 'several'}"
        asked[kind] += 1
        right[kind] += bool((said == targets).all())
        if alone and turn.kind == "caption":
            asked["shape word of the caption, one thing"] += 1
            right["shape word of the caption, one thing"] += scene.things[0].shape in tokenizer.decode(said).split()
    return {kind: round(right[kind] / asked[kind], 3) for kind in sorted(asked)}


def build_model(tokenizer: PreTrainedTokenizerFast, start: Path | None) -> PixelSailForCausalLM:
    """The model before the first step: new, or with the weights of a checkpoint."""
    torch.manual_seed(0)
    model = PixelSailForCausalLM(recipe.build_config(tokenizer))
    if start is None:
        patches = batches.SceneBatches(tokenizer, 0).make(recipe.STAGES[-1].until)["images"]["pixel_values"]
        recipe.whiten(model.model.vis_embed, patches)
    elif not (start / "config.json").exists():
        raise UserError(f"{start} holds no checkpoint to start from; name the export of a training")
    else:
        carry_over(model, tokenizer, start)
    model.set_attn_implementation("eager")  # a fifth faster than sdpa for rows this short on a CPU
    model.model.vis_embed.requires_grad_(False)  # the variances differ so much that any step would undo it
    return model


@torch.no_grad()
def carry_over(model: PixelSailForCausalLM, tokenizer: PreTrainedTokenizerFast, start: Path) -> None:
    """Gives a model the weights of an exported one; tokens that this one did not have begin as the mean of the others.

    Where it had no mask head, that stays as it is.
    """
    stored = {_own_name(name): tensor.float() for name, tensor in load_file(start / WEIGHTS).items()}
    known = PreTrainedTokenizerFast.from_pretrained(start).get_vocab()
    pairs = [(row, known[token]) for token, row in tokenizer.get_vocab().items() if token in known]
    rows, earlier = map(list, zip(*pairs, strict=True))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = stored[name].mean(dim=0).repeat(len(tokenizer), 1)
        table[rows] = stored[name][earlier]
        stored[name] = table
    if unknown := model.load_state_dict(stored, strict=False).unexpected_keys:
        raise UserError(f"{start} has {unknown[0]}, so it is no export of such a training")


def train(
    out: Path,
    steps: int,
    learning_rate: float,
    workers: int = 1,
    start: Path | None = None,
    first: int = 0,
    device: str = "cpu",
    precision: str = BFLOAT16,
) -> int:
    """Trains, leaving `log.jsonl`, `checkpoint.pt`, from which the same command goes on, and at the end `export/`.

    Args:
        out: Folder of the training.
        steps: How many steps the whole training has.
        learning_rate: Its highest value.
        workers: Processes that draw scenes.
        start: Folder of the checkpoint to begin with; a new model by default.
        first: Steps of the recipe that this checkpoint has behind it, which are left out.
        device: Where to train.
        precision: Of the computations, `bfloat16` or `float32`.

    Returns:
        0, or the exit status where a signal has stopped it.
    """
    tokenizer = recipe.build_tokenizer()
    model = build_model(tokenizer, start).to(choose_device(device))
    student = Student(model).to(model.device)
    trainer = Trainer(
        student,
        Recipe((learning_rate,), steps=steps - first, schedule="trapezoid", warmup=min(WARM_UP, steps // 10), clip=1.0),
        partial(loss_of, half=precision == BFLOAT16),
        optimizers=build_optimizers(student, learning_rate, precision),
        checkpoint=out / "checkpoint.pt",
        log=out / "log.jsonl",
        settings={
            "steps": steps,
            "learning_rate": learning_rate,
            "start": start and fingerprint_checkpoint(start),
            "first": first,
            "precision": precision,
            "early": EARLY,
            "looking_heads": LOOKING_HEADS,
            "tokens_per_step": recipe.TOKENS_PER_STEP,
            "stages": [asdict(stage) for stage in recipe.STAGES],
        },
    )
    trainer.resume()
    status = trainer.run(
        lambda begin, end: read_batches(tokenizer, workers, first + begin, first + end),
        log_every=LOG_EVERY,
        save_every=SAVE_EVERY,
        validate_every=SAVE_EVERY,
        validate=lambda: {"accuracy": evaluate(model, tokenizer)},
    )
    if not status:
        _export(out, model, tokenizer, start, first, steps)
    return status


def read_batches(
    tokenizer: PreTrainedTokenizerFast, workers: int, first: int, last: int
) -> Generator[batches.Batch, None, None]:
    """The batches of these steps, drawn ahead by other processes."""
    loader = DataLoader(
        batches.SceneBatches(tokenizer, first),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_signals_to_parent,
    )
    yield from islice(loader, last - first)


def _export(
    out: Path,
    model: PixelSailForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    start: Path | None,
    first: int,
    steps: int,
) -> None:
    """Writes the checkpoint in bfloat16, with a summary of its training; what it started from counts."""
    folder = out / "export"
    accuracy = evaluate(model, tokenizer)
    save(folder, model, tokenizer)
    losses = {line["step"]: round(line["loss"], 4) for line in read_log(out / "log.jsonl") if "loss" in line}
    earlier = read_json(start / SUMMARY) if start and (start / SUMMARY).exists() else {"steps": 0, "images": 0}
    figures = recipe.summary(
        steps=earlier["steps"] + steps - first,
        images=earlier["images"] + recipe.count_images(first, steps),
        loss={step: loss for step, loss in losses.items() if step % (10 * LOG_EVERY) == 0},
        accuracy=accuracy,
    )
    write_json(folder / SUMMARY, figures)


def _own_name(name: str) -> str:
    return f"{HEAD}{name}" if name.startswith(HEAD_MODULES) else name


def save(folder: Path, model: PixelSailForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a SAIL with its mask head beside it, under the head's published names."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name.removeprefix(HEAD): tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    fields = {name: value for name, value in model.config.to_dict().items() if name in SailConfig().to_dict()}
    SailConfig(**{**fields, "architectures": ["SailForCausalLM"], "dtype": "bfloat16"}).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    images = SailImageProcessor(patch_size=recipe.PATCH, max_tokens=recipe.MAX_TOKENS)
    images.save_pretrained(folder)
    SailProcessor(images, tokenizer).save_pretrained(folder)


def main() -> int:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--steps", type=int, default=recipe.STAGES[-1].until)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=(BFLOAT16, FLOAT32), default=BFLOAT16)
    try:
        return train(**vars(parser.parse_args()))
    except UserError as error:
        print(f"pretrain_tiny: {in_one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
