"""A file of JSON lines that one process appends to."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from sail_encoder.errors import StoreError
from sail_encoder.store.appending import append_all
from sail_encoder.store.locking import lock


class LineLog:
    """Appends values, a line each; what a kill cut off at the end is dropped when the file is opened again.

    Args:
        path: The file; it is made if need be.

    Raises:
        StoreError: If another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("ab+")
        if not lock(self.file, wait=False):
            self.file.close()
            raise StoreError(f"another run is writing {path}; wait for it, or write elsewhere")
        self._drop_partial_line()

    def _drop_partial_line(self) -> None:
        end = self.file.seek(0, os.SEEK_END)
        while end and self._byte_before(end) != b"\n":
            end -= 1
        self.file.truncate(end)

    def _byte_before(self, position: int) -> bytes:
        self.file.seek(position - 1)
        return self.file.read(1)

    def read(self) -> list[Any]:
        """All values so far."""
        with self.path.open("rb") as lines:
            return [json.loads(line) for line in lines]

    def keep(self, wanted: Callable[[Any], bool]) -> None:
        """Drops the values from the first on that is not wanted."""
        end = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not wanted(json.loads(line)):
                    self.file.truncate(end)
                    break
                end += len(line)

    def append(self, value: Any) -> None:
        """Writes one line."""
        line = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        append_all(self.file.fileno(), line.encode() + b"\n")

    def close(self) -> None:
        """Ends the claim on the file."""
        self.file.close()

    def __enter__(self) -> "LineLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
