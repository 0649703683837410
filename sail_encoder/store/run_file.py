"""run.json: the settings of a run, and reports of the processes that have worked on it."""

import json
from pathlib import Path
from typing import Any

from sail_encoder.io.errors import StoreError


def read_run(folder: Path) -> dict[str, Any] | None:
    """Reads run.json, or gives None where there is none.

    Raises:
        StoreError: If it is damaged, or of another program.
    """
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        raise StoreError(f"{path} is damaged, or of another program; use another --out")
    return run
