"""Folders of the commands of segmentation: their files, whose run they hold, and what of it may be deleted."""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evals.segmentation.sources import CLASS_FILE
from heads.contract import DESCRIPTION, WEIGHTS
from sail_encoder.io.errors import UserError
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.runs import RUN, check_settings, require_own, write_run
from sail_encoder.io.versions import versions

RESULTS, CHECKPOINT, LOG = "results.json", "checkpoint.pt", "log.jsonl"
CURVES, IOU = "curves.png", "iou.png"
OVERLAYS, LABELS, PICTURES = "overlays", "labels", "pictures.jsonl"
TRAIN, EVAL, PREDICT = "segment train", "segment eval", "segment predict"
"""How run.json names the commands."""


def check_owner(folder: Path, command: str) -> None:
    """Makes sure that a folder holds nothing of a data set, or of another command, so that this one may write there.

    Args:
        folder: Where the command is to write.
        command: `TRAIN`, `EVAL` or `PREDICT`.

    Raises:
        UserError: If it holds a run of another command or program, or label maps, pictures or a head without a run.
    """
    if require_own(folder, command) is not None:
        return
    for name in (LABELS, OVERLAYS, CLASS_FILE, WEIGHTS):
        if (folder / name).exists():
            raise UserError(
                f"{folder} has {name} and no {RUN}, so it is no run of sail {command} and nothing is written there; "
                "use another --out"
            )


def check_run(folder: Path, settings: dict[str, Any]) -> None:
    """Compares settings with those of a run in the folder, if there is one.

    Raises:
        UserError: If one differs.
    """
    check_settings(folder, _as_json(settings), TRAIN)


def claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Begins a run in a folder, or goes on with one of the same settings.

    Raises:
        UserError: If a run with other settings is there, or something else is.
    """
    if overwrite:
        files = (CHECKPOINT, LOG, CURVES, IOU, WEIGHTS, DESCRIPTION, RESULTS, PICTURES)
        remove_run(folder, TRAIN, read_names(folder, PICTURES), files)
    check_run(folder, settings)
    write_run(folder, TRAIN, {"settings": _as_json(settings), "versions": versions()})


def remove_run(folder: Path, command: str, pictures: Iterable[str], files: Sequence[str]) -> None:
    """Deletes a run; what it did not write stays.

    Neither cached grids nor drawn scenes go, which any run may use.

    Args:
        folder: Where it is.
        command: Whose run it is.
        pictures: Label maps and overlays that it has written, relative to the folder.
        files: Names of its other files.

    Raises:
        UserError: If something else is in the folder.
    """
    check_owner(folder, command)
    if not (folder / RUN).exists():
        return
    for name in pictures:
        path = folder / name
        # A list that was tampered with does not reach beyond the folder.
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
    remove_empty(folder / LABELS, folder / OVERLAYS)
    for name in (*files, RUN):
        (folder / name).unlink(missing_ok=True)


def read_names(folder: Path, log: str) -> list[Any]:
    """Values of a log of a run's pictures, none where there is no such log."""
    if not (folder / log).is_file():
        return []
    with LineLog(folder / log) as lines:
        return lines.read()


def remove_empty(*folders: Path) -> None:
    """Removes folders that hold nothing but empty folders."""
    for folder in folders:
        nested = [Path(path) for path, _, _ in os.walk(folder, topdown=False)]
        for path in nested:
            with suppress(OSError):
                path.rmdir()


def _as_json(settings: dict[str, Any]) -> Any:
    """Settings as they are read back: tuples as lists."""
    return json.loads(json.dumps(settings))
