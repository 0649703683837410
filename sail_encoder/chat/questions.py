"""Questions: what may be asked, and files of them."""

import json
from dataclasses import dataclass
from pathlib import Path

from sail_encoder.errors import UserError
from sail_encoder.sail.published import VISION_TOKENS


@dataclass(frozen=True)
class Query:
    """One line of the input: a prompt, and an image if there is one."""

    prompt: str
    image: str | None = None


def check_prompt(prompt: str) -> None:
    """Raises a `UserError` if a question is empty, or holds a token that stands for an image."""
    if not prompt.strip():
        raise UserError("the prompt is empty; ask something")
    for token in VISION_TOKENS.values():
        if token in prompt:
            raise UserError(f"the prompt holds {token}, which stands for an image; show images by their path instead")


def read_queries(source: Path) -> list[Query]:
    """Reads the questions.

    Args:
        source: JSON lines with `prompt` and, if there is one, `image`, a path relative to this file.

    Raises:
        UserError: If the file does not exist or a line is not understood.
    """
    if not source.is_file():
        raise UserError(f'no file {source}; write one question a line, such as {{"image": "a.jpg", "prompt": "..."}}')
    queries = []
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), 1):
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
    try:
        check_prompt(fields["prompt"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    image = fields.get("image")
    if image is not None and not isinstance(image, str):
        raise UserError(f'{where}: "image" is not a path')
    return Query(fields["prompt"], image)
