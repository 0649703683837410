"""Files that are there as a whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from sail_encoder.io.errors import CheckpointError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside a file to write to, and puts the file in its place when it is complete.

    The folder is made if need be. What was there before stays if writing fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Fields of a JSON file of a checkpoint; none where there is no file.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no fields; download it again")
    return fields


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file; NaN and infinite numbers become null, since JSON has none."""
    with replacing(path) as unfinished:
        text = json.dumps(_without_nan(content), indent=1, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def format_bytes(count: float) -> str:
    """Writes a size for people, in powers of 1000."""
    if count < 1000:
        return f"{count:,.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:,.1f} {unit}"
    return f"{count / 1000:,.1f} TB"
