"""Folders of the commands of segmentation: their files, whose run they hold, and what of it may be deleted."""

import json
import os
import reprlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evals.segmentation.layouts import CLASS_FILE
from heads.contract import DESCRIPTION, WEIGHTS
from sail_encoder.io.errors import UserError
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.runs import RUN, check_settings, require_own, write_run
from sail_encoder.io.typed import require_fields, require_type
from sail_encoder.io.versions import versions
from sail_encoder.store.records import is_below

REMEDY = "delete the line and what it names, or use another --out"
"""What helps where a line of a log is damaged."""

RESULTS, CHECKPOINT, LOG = "results.json", "checkpoint.pt", "log.jsonl"
TABLES = ("results.md", "results.tex")
CURVES, IOU = "curves.png", "iou.png"
IMAGES, BEST, WORST = "images.csv", "best.png", "worst.png"
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


def claim(folder: Path, settings: dict[str, Any], overwrite: bool, others: Sequence[str] = ()) -> None:
    """Begins a run in a folder, or goes on with one of the same settings.

    Args:
        folder: The folder.
        settings: All that decides what comes out.
        overwrite: Whether to delete an earlier run first.
        others: Files of such a run beside those of every run.

    Raises:
        UserError: If a run with other settings is there, or something else is.
    """
    if overwrite:
        pictures = (CURVES, IOU, IMAGES, BEST, WORST)
        files = (CHECKPOINT, LOG, *pictures, WEIGHTS, DESCRIPTION, RESULTS, *TABLES, PICTURES, *others)
        remove_run(folder, TRAIN, read_log_of_run(folder / PICTURES, as_picture), files)
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
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            path.unlink(missing_ok=True)
    remove_empty(folder / LABELS, folder / OVERLAYS)
    for name in (*files, RUN):
        (folder / name).unlink(missing_ok=True)


def read_log_of_run(path: Path, of: Callable[[Any], Any]) -> list[Any]:
    """Values of a log of a run's pictures, none where there is no such log.

    Raises:
        StoreError: If another run is writing it, or a line is damaged.
    """
    if not path.exists():
        return []
    with LineLog(path, of, REMEDY) as lines:
        return lines.read()


def as_entry(line: Any) -> dict[str, Any]:
    """A line of the journal of label maps."""
    entry = require_fields(line, {"name": str, "path": str, "size": int | None, "changed": int, "written": int})
    _require_below(entry["name"])
    return entry


def as_picture(line: Any) -> str:
    """A line of the list of pictures, their paths below the folder."""
    require_type(line, str)
    _require_below(line)
    return str(line)


def _require_below(name: str) -> None:
    if not is_below(name):
        raise TypeError(f"it names {reprlib.repr(name)}")


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
