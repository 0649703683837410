"""A file of JSON lines that one process appends to."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sail_encoder.io.errors import StoreError, in_one_line
from sail_encoder.io.files import append_all, open_regular, require_regular
from sail_encoder.io.locks import lock

Value = TypeVar("Value")

_REMEDY = "remove it, or write elsewhere"
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a value raises where JSON has another form than it should."""


def read_lines(path: Path, of: Callable[[Any], Value], remedy: str = _REMEDY, start: int = 0) -> Iterator[Value]:
    """Values in the whole lines of a file; what a kill has cut off at its end is none.

    Args:
        path: The file.
        of: Makes the value of what JSON has read, and raises an error where it cannot.
        remedy: What to do about a damaged line.
        start: The byte to begin from, at which a line begins.

    Raises:
        StoreError: If a line is no JSON, or nothing can be made of it.
        OSError: If the file cannot be read, or is no regular one.
    """
    with open_regular(path) as lines:
        lines.seek(start)
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                yield _parse(line, of, f"{path} line {number}", remedy)


def _parse(line: bytes, of: Callable[[Any], Value], where: str, remedy: str) -> Value:
    try:
        return of(json.loads(line))
    except DAMAGE as error:
        reason = str(error) if isinstance(error, TypeError) else in_one_line(error)
        raise StoreError(f"{where} is damaged, or of another program ({reason}); {remedy}") from None


class LineLog:
    """Appends values, a line each; what a kill has cut off at the end is no value, and the next one replaces it.

    Opening and reading change nothing, so that a user of this class can refuse a file that is not its own.

    Args:
        path: The file; it is made if need be.
        of: Makes a value of what JSON has read of a line, and raises an error where it cannot.
        remedy: What to do about a damaged line.

    Raises:
        StoreError: If another process is writing it.
    """

    def __init__(self, path: Path, of: Callable[[Any], Any] = lambda value: value, remedy: str = _REMEDY) -> None:
        self.path, self.of, self.remedy = path, of, remedy
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
            StoreError: If a whole line is damaged.
        """
        return list(read_lines(self.path, self.of, self.remedy))

    @property
    def cut_off(self) -> bytes:
        """Bytes after the last whole line."""
        self.file.seek(self.end_of_lines())
        return self.file.read()

    def keep(self, wanted: Callable[[Any], bool]) -> None:
        """Drops the values from the first on that is not wanted.

        Raises:
            StoreError: If a whole line before that is damaged.
        """
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{self.path} line {number}"
                if not line.endswith(b"\n") or not wanted(_parse(line, self.of, where, self.remedy)):
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
        # Of a name that is not UTF-8 this makes escapes, as JSON has them.
        append_all(self.file.fileno(), line.encode(errors="backslashreplace") + b"\n")
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
