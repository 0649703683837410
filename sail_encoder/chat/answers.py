"""The file that answers go to: it belongs to the questions and the settings that it was begun with."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from sail_encoder.chat.questions import Query
from sail_encoder.errors import UserError
from sail_encoder.store.line_log import LineLog

_LINE_START = b'{"prompt":'
_WAY_OUT = "use another --output or --overwrite true"


class AnswerFile:
    """Answers to questions in their order, a line of JSON each; a run that was killed goes on behind the last of them.

    Args:
        path: The file. Beside it stands `<path>.run.json`, which says how the answers were made.
        queries: The questions.
        settings: All that decides what the answers are.
        overwrite: Whether to drop the answers that are there.

    Attributes:
        done: How many questions have an answer, or an error in its place.
        failed: How many of them have an error.

    Raises:
        UserError: If the file cannot be written, or answers other questions or was made with other settings.
    """

    def __init__(self, path: Path, queries: Sequence[Query], settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.queries, self.settings = path, queries, settings
        self.log = _open_log(path)
        try:
            lines = self._read(overwrite)
            self._check(lines)
        except UserError:
            self.log.close()
            raise
        self.done, self.failed = len(lines), sum("error" in line for line in lines)

    @property
    def open_queries(self) -> Sequence[Query]:
        """The questions that have no answer yet."""
        return self.queries[self.done :]

    def append(self, result: dict[str, str]) -> None:
        """Writes the `answer` to the next question, or the `error` in its place."""
        if not self.done:
            self._note_settings()
        self.log.append({**asdict(self.queries[self.done]), **result})
        self.done += 1
        self.failed += "error" in result

    @property
    def _notes(self) -> Path:
        return self.path.with_name(f"{self.path.name}.run.json")

    def _note_settings(self) -> None:
        unfinished = self._notes.with_suffix(".part")
        unfinished.write_text(json.dumps({"settings": self.settings}, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, self._notes)

    def _read(self, overwrite: bool) -> list[dict[str, Any]]:
        try:
            lines = self.log.read()
            are_answers = all(map(_is_answer, lines)) and _may_become_answer(self.log.cut_off)
        except ValueError:
            are_answers = False
        if not are_answers:
            raise UserError(f"{self.path} holds something other than answers; use another --output")
        if overwrite:
            self.log.keep(lambda line: False)
        return [] if overwrite else lines

    def _check(self, lines: Sequence[dict[str, Any]]) -> None:
        if lines:
            self._check_settings()
        for number, (line, query) in enumerate(zip(lines, self.queries, strict=False), 1):
            if (line.get("prompt"), line.get("image")) != (query.prompt, query.image):
                raise UserError(f"{self.path} line {number} answers another question; {_WAY_OUT}")
        if len(lines) > len(self.queries):
            raise UserError(f"{self.path} has more answers than there are questions; {_WAY_OUT}")

    def _check_settings(self) -> None:
        if not self._notes.is_file():
            raise UserError(f"{self.path} has answers, but no {self._notes.name} says how they were made; {_WAY_OUT}")
        earlier = json.loads(self._notes.read_text(encoding="utf-8"))["settings"]
        changes = [
            f"{name} was {earlier.get(name)}, now {new}"
            for name, new in self.settings.items()
            if earlier.get(name) != new
        ]
        if changes:
            raise UserError(f"{self.path} was begun with other settings: {'; '.join(changes)}; {_WAY_OUT}")

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()


def _is_answer(line: Any) -> bool:
    return isinstance(line, dict) and "prompt" in line and ("answer" in line or "error" in line)


def _may_become_answer(start: bytes) -> bool:
    """Whether a kill may have left this of a line."""
    return start.startswith(_LINE_START) or _LINE_START.startswith(start)


def _open_log(path: Path) -> LineLog:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return LineLog(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); use another --output") from None
