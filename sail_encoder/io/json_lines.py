"""A file of JSON lines that one process appends to."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sail_encoder.io.errors import StoreError
from sail_encoder.io.files import append_all, require_regular
from sail_encoder.io.locks import lock


class LineLog:
    """Appends values, a line each; what a kill has cut off at the end is no value, and the next one replaces it.

    Opening and reading change nothing, so that a user of this class can refuse a file that is not its own.

    Args:
        path: The file; it is made if need be.

    Raises:
        StoreError: If another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            require_regular(path)
        self.file = path.open("ab+")
        self._may_end_in_part = True
        if not lock(self.file, wait=False, path=path):
            self.file.close()
            raise StoreError(f"another run is writing {path}; wait for it, or write elsewhere")

    def read(self) -> list[Any]:
        """All values so far.

        Raises:
            StoreError: If a whole line is no JSON.
        """
        with self.path.open("rb") as lines:
            return [self._parse(number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def _parse(self, number: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{self.path} line {number} is damaged ({error}); remove it, or write elsewhere") from None

    @property
    def cut_off(self) -> bytes:
        """Bytes after the last whole line."""
        self.file.seek(self.end_of_lines())
        return self.file.read()

    def keep(self, wanted: Callable[[Any], bool]) -> None:
        """Drops the values from the first on that is not wanted."""
        end = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n") or not wanted(json.loads(line)):
                    self.file.truncate(end)
                    break
                end += len(line)

    def append(self, value: Any) -> None:
        """Writes one line.

        Raises:
            StoreError: If the file was deleted or replaced meanwhile, so that the line would be lost.
        """
        self.require_in_place()
        if self._may_end_in_part:
            self.file.truncate(self.end_of_lines())
        line = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        self._may_end_in_part = True
        append_all(self.file.fileno(), line.encode() + b"\n")
        self._may_end_in_part = False

    def require_in_place(self) -> None:
        """Makes sure that what was written is still there.

        Raises:
            StoreError: If the file was deleted or replaced.
        """
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno())):
                return
        raise StoreError(f"{self.path} was deleted or replaced while it was written; give the same command again")

    def end_of_lines(self) -> int:
        """Offset of the next line, after the last whole one."""
        end = self.file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            self.file.seek(start)
            newline = self.file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def close(self) -> None:
        """Ends the claim on the file."""
        self.file.close()

    def __enter__(self) -> "LineLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
