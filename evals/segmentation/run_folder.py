"""The folder of a training run: whose it is, and what may be deleted from it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sail_encoder.io.errors import UserError
from sail_encoder.io.files import write_json
from sail_encoder.io.versions import versions
from sail_encoder.store.store import check_settings

RUN, RESULTS, CHECKPOINT, LOG = "run.json", "results.json", "checkpoint.pt", "log.jsonl"
CURVES, IOU = "curves.png", "iou.png"
OVERLAYS, LABELS = "overlays", "labels"


def check_run(folder: Path, settings: dict[str, Any]) -> None:
    """Compares settings with those of a run in the folder, if there is one.

    Raises:
        UserError: If one differs.
    """
    check_settings(folder, _as_json(settings))


def claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Begins a run in a folder, or goes on with one of the same settings.

    Raises:
        UserError: If a run with other settings is there, or something else is.
    """
    if overwrite:
        _remove_run(folder)
    check_run(folder, settings)
    write_json(folder / RUN, {"settings": _as_json(settings), "versions": versions()})


def remove_labels(folder: Path, others: Sequence[str]) -> None:
    """Deletes predicted label maps.

    Args:
        folder: Where they are.
        others: Names of the files beside them that go with them.

    Raises:
        UserError: If something else is in the folder, such as a training run.
    """
    if not (folder / RUN).exists():
        if (folder / LABELS).exists() or (folder / OVERLAYS).exists():
            raise UserError(f"{folder} has no {RUN}, so what is in it is not overwritten; use another --out")
        return
    settings = json.loads((folder / RUN).read_text(encoding="utf-8")).get("settings", {})
    if "inference" not in settings:
        raise UserError(f"{folder} holds a run of another command, which is not overwritten; use another --out")
    _remove(folder, others)


def _as_json(settings: dict[str, Any]) -> Any:
    """Settings as they are read back: tuples as lists."""
    return json.loads(json.dumps(settings))


def _remove_run(folder: Path) -> None:
    """Deletes a run, but neither cached grids nor drawn scenes, which any run may use."""
    from heads.contract import DESCRIPTION, WEIGHTS

    if not (folder / RUN).exists():
        if (folder / WEIGHTS).exists() or (folder / OVERLAYS).exists():
            raise UserError(f"{folder} has no {RUN}, so what is in it is not overwritten; use another --out")
        return
    _remove(folder, (CHECKPOINT, LOG, CURVES, IOU, WEIGHTS, DESCRIPTION, RESULTS))


def _remove(folder: Path, files: Sequence[str]) -> None:
    """Deletes pictures, label maps and these files; the description of the run, which says whose they are, is last."""
    for name in (OVERLAYS, LABELS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*files, RUN):
        (folder / name).unlink(missing_ok=True)
