"""Files that are there as a whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, and puts the file in its place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    yield unfinished
    os.replace(unfinished, path)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
