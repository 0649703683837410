"""Scores of masks for referring expressions: cIoU and gIoU."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from evals.referring.data import ReferringData, Shown
from evals.report import Table
from evals.scene_expressions import Expression
from sail_encoder.chat.sampling import Sampling
from sail_encoder.images.decoding import Array
from sail_encoder.io.devices import count_readers
from sail_encoder.io.threads import map_ahead
from sail_encoder.models.pixel_sail.questions import refer

if TYPE_CHECKING:
    from sail_encoder.chat.conversation import Chat

LONGEST_ANSWER = 32
"""Tokens of an answer that is scored, at most."""

_BATCH = 16
"""Questions that are answered together."""

_READERS, _AHEAD = 8, 16


class ReferringScores:
    """Sums over expressions, of which scores are made.

    cIoU is the sum of all intersections over the sum of all unions. gIoU is the mean of the IoU of each expression. An
    expression that means nothing in the image counts as gRefCOCO has it (arXiv 2306.00968): its IoU is 1 where nothing
    is predicted and 0 where something is, and then what is predicted adds to the union; P@0.5 leaves it out.

    Attributes:
        ious: IoU of each expression.
        hits: Of expressions with a target, for each whether the IoU is at least a half.
        intersection: Pixels of all intersections.
        union: Pixels of all unions.
        absent: Of expressions without a target, for each whether nothing was predicted.
        present: Of expressions with a target, for each whether something was predicted.
    """

    def __init__(self) -> None:
        self.ious: list[float] = []
        self.hits: list[bool] = []
        self.intersection, self.union = 0, 0
        self.absent: list[bool] = []
        self.present: list[bool] = []

    def add(self, predicted: Array, target: Array, has_target: bool) -> None:
        """Takes one expression.

        Args:
            predicted: bool [height, width], all masks of the answer together.
            target: bool [height, width]; it may be empty where there is a target, as the annotation has it.
            has_target: Whether the expression means something in the image.
        """
        intersection, union = int((predicted & target).sum()), int((predicted | target).sum())
        self.intersection += intersection
        self.union += union
        if has_target:
            self.ious.append(intersection / union if union else 0.0)
            self.hits.append(self.ious[-1] >= 0.5)
            self.present.append(bool(predicted.any()))
        else:
            self.ious.append(float(union == 0))
            self.absent.append(union == 0)

    def as_dict(self) -> dict[str, Any]:
        """All scores as shares, under the names that papers use; null where there is none."""
        scores = {
            "cIoU": self.intersection / self.union if self.union else None,
            "gIoU": _mean(self.ious),
            "P@0.5": _mean(self.hits),
            "N-acc": _mean(self.absent),
            "T-acc": _mean(self.present),
        }
        rounded = {name: None if score is None else round(score, 6) for name, score in scores.items()}
        return {**rounded, "expressions": len(self.ious)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def score_expressions(chat: "Chat", data: ReferringData, title: str) -> dict[str, ReferringScores]:
    """Asks for the mask of every expression, and compares it at the size of the image.

    Args:
        chat: The model.
        data: Images and expressions.
        title: Name of the split.

    Returns:
        The scores of all expressions under the name of the split, and those of each kind where these are known.
    """
    from sail_encoder.chat.conversation import Chat, ask_together

    scores = {title: ReferringScores()}
    sampling = Sampling(LONGEST_ANSWER)
    waiting: list[tuple[Chat, Expression, Array]] = []

    def answer(count: int) -> None:
        asked, waiting[:count] = waiting[:count], []
        questions = [refer(expression.text) for _, expression, _ in asked]
        answers = ask_together([looking for looking, _, _ in asked], questions, sampling)
        for said, (_, expression, mask) in zip(answers, asked, strict=True):
            names = (title, f"{title}: {expression.kind}") if expression.kind else (title,)
            for name in names:
                scores.setdefault(name, ReferringScores()).add(
                    np.any(said.masks, axis=0), mask, bool(expression.targets)
                )

    for image, expressions, masks in _read_ahead(data, title):
        looking = Chat(chat.engine)
        looking.look(image)
        waiting += [(looking, *pair) for pair in zip(expressions, masks, strict=True)]
        while len(waiting) >= _BATCH:
            answer(_BATCH)
    if waiting:
        answer(len(waiting))
    return scores


def _read_ahead(data: ReferringData, title: str) -> Iterator[Shown]:
    with ThreadPoolExecutor(min(_READERS, count_readers()), "read") as pool:
        shown = map_ahead(data.read, range(len(data)), pool, _AHEAD)
        yield from tqdm(shown, f"scoring {title}", len(data), unit="img", disable=None)


def as_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """The scores in percent, a row per split or kind; columns that no row has are left out."""
    names = [
        name
        for name in ("cIoU", "gIoU", "P@0.5", "N-acc", "T-acc")
        if any(row[name] is not None for row in scores.values())
    ]
    rows = [
        [title, f"{row['expressions']:,}", *("-" if row[name] is None else f"{100 * row[name]:.2f}" for name in names)]
        for title, row in scores.items()
    ]
    return [["expressions of", "count", *(f"{name} %" for name in names)], *rows]
