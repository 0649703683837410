"""The file that answers go to: it belongs to the questions and the settings that it was begun with."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from sail_encoder.chat.questions import RESULTS, Query
from sail_encoder.io.errors import UserError, in_one_line
from sail_encoder.io.files import read_json, replacing, write_json
from sail_encoder.io.json_lines import LineLog, read_lines
from sail_encoder.io.typed import require_fields, require_type

_LINE_START = b'{"prompt":'
_WAY_OUT = "use another --output or --overwrite true"


class AnswerFile:
    """Answers to questions in their order, a line of JSON each; a run that was killed goes on after the last of them.

    Questions that ended in an error are open again: the file is cut at the first of them, and the answers after it are
    set aside until the run has come to their place.

    Args:
        path: The file. Beside it stand `<path>.run.json`, which says how the answers were made, and while errors are
            tried again `<path>.aside.jsonl`, the answers after the first of them.
        queries: The questions.
        settings: All that decides what the answers are.
        overwrite: Whether to drop the answers that are there.

    Attributes:
        done: How many lines the file has, an answer each, or an error in its place.
        failed: How many of them are errors of this run.

    Raises:
        UserError: If the file cannot be written, or answers other questions or was made with other settings.
    """

    def __init__(self, path: Path, queries: Sequence[Query], settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path, self.queries, self.settings = path, queries, settings
        self.log = _open_log(path)
        try:
            lines = self._read(overwrite)
            self._check(lines)
            self._aside = self._set_aside(lines)
        except UserError:
            self.log.close()
            raise
        self.done = next((index for index, line in enumerate(lines) if "error" in line), len(lines))
        self.failed = 0
        self._put_back()

    def next_queries(self, count: int) -> list[Query]:
        """Up to so many of the questions that have no answer yet, in their order."""
        unanswered = (index for index in range(self.done, len(self.queries)) if index not in self._aside)
        return [self.queries[index] for index in islice(unanswered, count)]

    def append(self, result: dict[str, str]) -> None:
        """Writes the `answer` to the next question, or the `error` in its place."""
        self._write(result)
        self.failed += "error" in result
        self._put_back()

    def _write(self, result: dict[str, str]) -> None:
        if not self.done:
            self._note_settings()
        self.log.append({**self.queries[self.done].as_line(), **result})
        self.done += 1

    def _set_aside(self, lines: Sequence[dict[str, Any]]) -> dict[int, dict[str, str]]:
        """Cuts the file at its first error; returns the answers that belong after it, by the question's number."""
        aside = self._read_aside()
        aside |= {index: {"answer": line["answer"]} for index, line in enumerate(lines) if "answer" in line}
        if any("error" in line for line in lines):
            numbers = sorted(aside)
            answered = [
                {"index": number, "line": {**self.queries[number].as_line(), **aside[number]}} for number in numbers
            ]
            with replacing(self._aside_path) as unfinished:
                unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in answered), encoding="utf-8")
            self.log.keep(lambda line: "error" not in line)
        return aside

    def _read_aside(self) -> dict[int, dict[str, str]]:
        if not self._aside_path.exists():
            return {}
        lines = dict(read_lines(self._aside_path, _as_aside, "delete the file, and its questions are asked again"))
        asked = {number: query for number, query in enumerate(self.queries) if number in lines}
        known = (number for number, query in asked.items() if _answers(lines[number], query))
        return {number: {"answer": lines[number]["answer"]} for number in known}

    def _put_back(self) -> None:
        """Writes the answers that were set aside and whose turn it is; after the last question none is needed."""
        while self.done in self._aside:
            self._write(self._aside[self.done])
        if self.done == len(self.queries):
            self._aside_path.unlink(missing_ok=True)

    @property
    def _aside_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.aside.jsonl")

    @property
    def _notes(self) -> Path:
        return self.path.with_name(f"{self.path.name}.run.json")

    def _note_settings(self) -> None:
        write_json(self._notes, {"settings": self.settings})

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
            self._aside_path.unlink(missing_ok=True)
        return [] if overwrite else lines

    def _check(self, lines: Sequence[dict[str, Any]]) -> None:
        if lines or self._aside_path.exists():
            self._check_settings()
        for number, (line, query) in enumerate(zip(lines, self.queries, strict=False), 1):
            if not _answers(line, query):
                raise UserError(f"{self.path} line {number} answers another question; {_WAY_OUT}")
        if len(lines) > len(self.queries):
            raise UserError(f"{self.path} has more answers than there are questions; {_WAY_OUT}")

    def _check_settings(self) -> None:
        if not self._notes.exists():
            raise UserError(f"{self.path} has answers, but no {self._notes.name} says how they were made; {_WAY_OUT}")
        try:
            earlier = require_fields(read_json(self._notes), {"settings": dict})["settings"]
        except (UserError, TypeError, KeyError) as error:
            raise UserError(f"{self._notes} is damaged ({in_one_line(error)}); {_WAY_OUT}") from None
        changes = [
            f"{name} was {earlier.get(name)}, now {self.settings.get(name)}"
            for name in {**self.settings, **earlier}
            if earlier.get(name) != self.settings.get(name)
        ]
        if changes:
            raise UserError(f"{self.path} was begun with other settings: {'; '.join(changes)}; {_WAY_OUT}")

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()


def _answers(line: dict[str, Any], query: Query) -> bool:
    """Tells whether a line repeats a question in full."""
    return {key: value for key, value in line.items() if key not in RESULTS} == query.as_line()


def _is_answer(line: Any) -> bool:
    has_text = isinstance(line, dict) and all(isinstance(line[name], str) for name in RESULTS if name in line)
    return has_text and "prompt" in line and any(name in line for name in RESULTS)


def _as_aside(line: Any) -> tuple[int, dict[str, Any]]:
    """A line of the answers that are set aside: the number of the question, and the line to put back."""
    fields = require_fields(line, {"index": int, "line": dict})
    require_type(fields["line"]["answer"], str, "answer")
    return fields["index"], fields["line"]


def _may_become_answer(start: bytes) -> bool:
    """Tells whether a kill may have left this of a line."""
    return start.startswith(_LINE_START) or _LINE_START.startswith(start)


def _open_log(path: Path) -> LineLog:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return LineLog(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); use another --output") from None
