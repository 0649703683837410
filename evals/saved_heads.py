"""Heads beside the results they have reached: each folder says of which result its head is."""

from pathlib import Path

from heads.contract import DESCRIPTION, WEIGHTS
from heads.probe import Probe
from sail_encoder.backbones.spec import FeatureSpec
from sail_encoder.io.errors import UserError
from sail_encoder.io.files import read_json, write_json
from sail_encoder.io.typed import require_fields

RESULT = "result.json"


def save_with_result(folder: Path, probe: Probe, source: FeatureSpec, key: str) -> None:
    """Saves a fitted probe, and under which key its result is in the log."""
    # Written last, so that a run that is stopped in between leaves no head with another's key.
    (folder / RESULT).unlink(missing_ok=True)
    probe.save(folder, source)
    write_json(folder / RESULT, {"key": key})


def holds_head_of(folder: Path, key: str) -> bool:
    """Tells whether a folder holds the head of the result with this key.

    Raises:
        UserError: If the file that says so is damaged.
    """
    if not all((folder / name).exists() for name in (WEIGHTS, DESCRIPTION, RESULT)):
        return False
    try:
        return bool(require_fields(read_json(folder / RESULT), {"key": str}).get("key") == key)
    except (UserError, TypeError) as error:
        raise UserError(f"{folder / RESULT} is damaged ({error}); delete it to fit the probe again") from None
