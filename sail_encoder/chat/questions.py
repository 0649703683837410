"""Questions: what may be asked, and files of them."""

import json
from dataclasses import dataclass
from pathlib import Path

from sail_encoder.io.errors import UserError
from sail_encoder.models.sail.config_file import VISION_TOKENS


@dataclass(frozen=True)
class Query:
    """One line of the input: a prompt, and an image if there is one."""

    prompt: str
    image: str | None = None


def check_prompt(prompt: str) -> None:
    """Raises a `UserError` if a question is empty, or holds a token that stands for an image, or what is no text."""
    if not prompt.strip():
        raise UserError("the prompt is empty; ask something")
    _check_text("prompt", prompt)
    for token in VISION_TOKENS.values():
        if token in prompt:
            raise UserError(f"the prompt holds {token}, which stands for an image; show images by their path instead")


def _check_text(name: str, text: str) -> None:
    """Refuses half of a character: a byte that is not UTF-8, or one escape of the two that JSON takes for an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the {name} holds {text[error.start]!a}, half of a character; write it in UTF-8") from None


def read_queries(source: Path) -> list[Query]:
    """Reads the questions.

    Args:
        source: JSON lines with `prompt` and, if there is one, `image`, a path relative to this file.

    Raises:
        UserError: If the file does not exist or a line is not understood.
    """
    if not source.is_file():
        raise UserError(f'no file {source}; write one question a line, such as {{"image": "a.jpg", "prompt": "..."}}')
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 ({error.reason} at byte {error.start:,}); save it as UTF-8") from None
    queries = []
    # Not splitlines, which takes characters within a string of JSON, such as U+2028, for ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            queries.append(_parse(line, f"{source} line {number}"))
    if not queries:
        raise UserError(f"{source} holds no questions")
    return queries


def _parse(line: str, where: str) -> Query:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise UserError(f'{where} has no "prompt"')
    image = fields.get("image")
    if image is not None and not isinstance(image, str):
        raise UserError(f'{where}: "image" is not a path')
    try:
        check_prompt(fields["prompt"])
        _check_text("path", image or "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Query(fields["prompt"], image)
