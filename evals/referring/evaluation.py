"""`sail segment eval` of a Pixel-SAIL: its scores on splits of a data set, and their report."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.referring.data import ReferringData, open_splits
from evals.referring.scores import LONGEST_ANSWER, as_table, score_expressions
from evals.report import markdown_of, write_tables
from evals.segmentation.run_folders import EVAL, RESULTS, check_owner
from sail_encoder.backbones.registry import announce
from sail_encoder.io.devices import check_device
from sail_encoder.io.files import write_json
from sail_encoder.io.runs import read_run, write_run
from sail_encoder.io.versions import versions

if TYPE_CHECKING:
    from sail_encoder.chat.conversation import Chat

_TRAINING = {
    "made of": "{model}, weights {weights}",
    "training data": "{data}",
    "steps": "{steps} of {batch_size} images, up to {expressions} expressions each",
    "optimizer": "{optimizer}, {schedule}, warm-up {warmup}",
    "rate": "{learning_rate:g}, weight decay {weight_decay:g}, gradients up to {clip:g}",
    "seeds": "{seed}",
    "precision": "{precision}",
}
"""What the settings of a run of `sail segment train --head referring` tell about a model."""


def evaluate_referring(
    data: str, head: str, out: str | None, split: str, latex: bool, device: str, precision: str
) -> int:
    """Scores a Pixel-SAIL on referring expressions.

    Args:
        data: `scenes-referring`, a folder with the published files, or one of its files of expressions.
        head: Folder of the Pixel-SAIL.
        out: Folder for results.json and results.md; without it the table is only printed.
        split: Which part of the data set, or `all` but that of training.
        latex: Whether to write results.tex too.
        device: As in `load_chat`.
        precision: As in `load_chat`.

    Returns:
        Exit status 0.
    """
    check_device(device)
    folder = Path(out) if out is not None else None
    if folder is not None:
        check_owner(folder, EVAL)
    opened = open_splits(data, split)
    announce(head)
    from sail_encoder.chat.conversation import load_chat

    chat = load_chat(head, device, precision)
    if folder is not None:
        write_run(folder, EVAL, {"settings": {"head": str(head), "data": data, "split": split}, "versions": versions()})
    run = read_run(Path(head)) or {"settings": {}}
    print(write_report(folder, score_splits(chat, opened), data, head, run["settings"], latex))
    return 0


def score_splits(chat: "Chat", splits: Mapping[str, ReferringData]) -> dict[str, dict[str, Any]]:
    """Scores of each split and, of drawn scenes, of each kind of expression."""
    scores: dict[str, dict[str, Any]] = {}
    for name, data in splits.items():
        scores |= {title: one.as_dict() for title, one in score_expressions(chat, data, name).items()}
    return scores


def write_report(
    folder: Path | None,
    scores: Mapping[str, Mapping[str, Any]],
    data: str,
    model: str,
    training: Mapping[str, Any],
    latex: bool,
) -> str:
    """Writes results.json and results.md, and returns the table.

    Args:
        folder: Where to write; nothing is written where it is None.
        scores: Scores by split and kind.
        data: Name of the data set.
        model: Folder of the model.
        training: Settings of the run that has trained it, as far as they are known.
        latex: Whether to write results.tex too.
    """
    table = as_table(scores)
    facts = [("data", data), ("model", model), *_training_facts(training), ("inference", _INFERENCE)]
    text = markdown_of(table)
    if folder is None:
        return text
    folder.mkdir(parents=True, exist_ok=True)
    protocol = {"data": data, "model": model, "longest_answer": LONGEST_ANSWER, "training": dict(training)}
    write_json(folder / RESULTS, {"scores": scores, "protocol": protocol})
    write_tables(folder, [table], facts, latex)
    return f"{text}\nresults are in {folder}"


_INFERENCE = (
    f"greedy answers of at most {LONGEST_ANSWER} tokens; all masks of an answer together, compared at the size of the "
    "image; an answer without [SEG] is an empty mask"
)


def _training_facts(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, text in _TRAINING.items():
        # A model may lie in a folder by itself.
        with suppress(KeyError):
            yield name, text.format(**training)
    if training.get("lora"):
        yield "adapters", f"of rank {training['lora']} on the blocks, merged"
