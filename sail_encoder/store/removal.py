"""Deleting a run, for `--overwrite`."""

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from sail_encoder.io.errors import StoreError
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.locks import locked_folder
from sail_encoder.io.refusals import explain_refusals
from sail_encoder.store.records import list_journals
from sail_encoder.store.run_file import read_run


def has_run(folder: Path) -> bool:
    """Whether there is a run to delete.

    Raises:
        StoreError: If the folder holds features but no run.json of ours, so that they may not be ours.
    """
    run = read_run(folder)
    if run is None:
        if (folder / "features").exists():
            raise StoreError(f"{folder} has features but no run.json, so it is not overwritten; use another --out")
    elif "runs" not in run:
        raise StoreError(f"{folder / 'run.json'} is of another program, so it is not overwritten; use another --out")
    return run is not None


def remove_run(folder: Path) -> None:
    """Deletes an earlier run from a folder, and nothing else.

    Raises:
        StoreError: If the folder holds what may not be ours, or a run that is still writing.
    """
    if not has_run(folder):
        return
    with explain_refusals(folder), ExitStack() as claims:
        claims.enter_context(locked_folder(folder))
        journals = list_journals(folder)
        # Claimed before anything is deleted, as another run may be writing one of them.
        for journal in journals:
            claims.enter_context(LineLog(journal))
        _remove_grids(folder / "features")
        shutil.rmtree(folder / ".work", ignore_errors=True)
        tables = [folder / name for name in ("index.parquet", "failures.csv", "run.json")]
        for path in (*folder.glob("features_*[0-9][0-9][0-9][0-9][0-9].npy"), *journals, *tables):
            path.unlink(missing_ok=True)


def _remove_grids(folder: Path) -> None:
    """Deletes .npy files and the folders that are empty without them."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            if name.endswith(".npy"):
                os.unlink(os.path.join(place, name))
        with suppress(OSError):
            os.rmdir(place)
