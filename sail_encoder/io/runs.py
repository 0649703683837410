"""run.json, by which a folder says which command made what is in it, and with which settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_encoder.io.errors import StoreError, UserError, name_changes
from sail_encoder.io.files import read_json, write_json

RUN = "run.json"
FORMAT = 2
"""Number of the format that is written; the one before, of version 0.1.0, had none, and named no command."""

_MARKS_OF_THE_FIRST_FORMAT = {
    "extract": {"root", "layers", "pool"},
    "segment predict": {"inference"},
    "segment train": {"training_images"},
}
"""Settings by which runs of that version are recognised."""


def read_run(folder: Path) -> dict[str, Any] | None:
    """Content of run.json, None where there is none.

    Raises:
        StoreError: If it is damaged, or of another program.
    """
    path = folder / RUN
    if not path.exists():
        return None
    try:
        run = read_json(path)
    except (UserError, OSError):
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        raise StoreError(f"{path} is damaged, or of another program; use another --out")
    if not isinstance(run.get("format", 1), int) or run.get("format", 1) > FORMAT:
        raise StoreError(f"{path} has format {run['format']}, this version reads up to {FORMAT}; update it")
    return run


def command_of(run: Mapping[str, Any]) -> str | None:
    """The command that made a run, such as `extract`; None where it is another program's."""
    if "format" in run:
        return str(run.get("command"))
    settings = run["settings"].keys()
    return next((command for command, marks in _MARKS_OF_THE_FIRST_FORMAT.items() if marks <= settings), None)


def check_settings(folder: Path, settings: Mapping[str, Any], command: str = "extract") -> None:
    """Compares settings with those of an earlier run in the folder, if there was one.

    Raises:
        StoreError: If one differs, or the run is of another command or of version 0.1.0.
    """
    run = read_run(folder)
    if run is None:
        return
    maker = command_of(run)
    if maker not in (command, None):
        raise StoreError(f"{folder} holds a run of sail {maker}; use another --out")
    if maker is not None and "format" not in run:
        raise StoreError(
            f"{folder} holds a run of version 0.1.0, which is read but not continued; use another --out "
            "or --overwrite true"
        )
    changes = name_changes(run["settings"], settings)
    if changes:
        raise StoreError(f"{folder} holds a run with other settings: {changes}; use another --out or --overwrite true")


def require_own(folder: Path, command: str) -> dict[str, Any] | None:
    """A run of this command, which may be overwritten; None where there is none.

    Raises:
        StoreError: If run.json is of another command or program.
    """
    run = read_run(folder)
    maker = command if run is None else command_of(run)
    if maker != command:
        whose = "another program" if maker is None else f"sail {maker}"
        raise StoreError(f"{folder / RUN} is of {whose}, so it is not overwritten; use another --out")
    return run


def write_run(folder: Path, command: str, content: Mapping[str, Any], work: Path | None = None) -> None:
    """Writes run.json with the mark of the command; `content` has `settings` and what else is to be said."""
    write_json(folder / RUN, {"command": command, "format": FORMAT, **content}, work)
