"""Questions: what may be asked, and files of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sail_encoder.images.sources import IMAGE_SUFFIXES
from sail_encoder.io.errors import UserError, in_one_line
from sail_encoder.io.files import read_text
from sail_encoder.models.pixel_sail.tokens import NO_PROMPT, SEG
from sail_encoder.models.sail.config_file import VISION_TOKENS

SHOWN = ("image", "images", "video")
"""Keys of a line that show something."""

RESULTS = ("answer", "error")
"""Keys that a line gets when it is answered."""

EXAMPLE = '{"image": "a.jpg", "prompt": "..."}'


@dataclass(frozen=True)
class Query:
    """One line of the input.

    Attributes:
        prompt: The question.
        image: Path of the image that it is about.
        images: Paths of several images, in place of one.
        video: Path of a video, in place of images.
        region: Region of the image that the question names, as text or as the numbers of a box.
        others: All else that the line holds, such as an id.
    """

    prompt: str
    image: str | None = None
    images: tuple[str, ...] = ()
    video: str | None = None
    region: str | tuple[float, ...] | None = None
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> tuple[str, ...]:
        """Paths of all images, or of the video."""
        return self.images or tuple(path for path in (self.image, self.video) if path is not None)

    def as_line(self) -> dict[str, Any]:
        """The question as its answer repeats it."""
        shown: dict[str, Any] = {"image": self.image}
        if self.images:
            shown = {"images": list(self.images)}
        elif self.video is not None:
            shown = {"video": self.video}
        if self.region is not None:
            shown["region"] = self.region if isinstance(self.region, str) else list(self.region)
        return {"prompt": self.prompt, **shown, **self.others}


def check_prompt(prompt: str, placeholders: Sequence[str] = tuple(VISION_TOKENS.values())) -> None:
    """Raises a `UserError` if a question is empty, or holds what stands for an image, or what is no text."""
    if not prompt.strip():
        raise UserError("the prompt is empty; ask something")
    _check_text("prompt", prompt)
    for token in placeholders:
        if token in prompt:
            if token in (SEG, NO_PROMPT):
                raise UserError(f"the prompt holds {token}, which stands for a mask in an answer; leave it out")
            raise UserError(f"the prompt holds {token}, which stands for an image; show images by their path instead")


def _check_text(name: str, text: str) -> None:
    """Refuses half of a character: a byte that is not UTF-8, or one escape of the two that JSON takes for an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the {name} holds {text[error.start]!a}, half of a character; write it in UTF-8") from None


def read_queries(
    source: Path, placeholders: Sequence[str] = tuple(VISION_TOKENS.values()), regions: bool = False
) -> list[Query]:
    """Reads the questions.

    Args:
        source: JSON lines with `prompt` and, if there is one, `image`, `images` or `video`: paths relative to this
            file. Other keys are kept.
        placeholders: Texts that no prompt may hold.
        regions: Whether `region` is a mask, its path relative to this file, or a box; otherwise it is kept like others.

    Raises:
        UserError: If the file does not exist or a line is not understood.
    """
    if not source.exists():
        raise UserError(f"no file {source}; write one question a line, such as {EXAMPLE}")
    try:
        text = read_text(source, "utf-8-sig")
    except OSError as error:
        reason = in_one_line(error)
        raise UserError(f"{reason}; write one question a line into a file, such as {EXAMPLE}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 ({error.reason} at byte {error.start:,}); save it as UTF-8") from None
    queries = []
    # Not splitlines, which takes characters within a string of JSON, such as U+2028, for ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            queries.append(_parse(line, f"{source} line {number}", placeholders, regions))
    if not queries:
        raise UserError(f"{source} holds no questions")
    return queries


def _parse(line: str, where: str, placeholders: Sequence[str], regions: bool) -> Query:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise UserError(f'{where} has no "prompt"')
    try:
        region = _read_region(fields.pop("region")) if regions and fields.get("region") is not None else None
        others = {key: value for key, value in fields.items() if key not in ("prompt", *SHOWN)}
        query = Query(fields["prompt"], **_read_shown(fields), region=region, others=others)
        if region is not None and query.image is None:
            raise UserError('"region" is one of an image; give "image" too')
        check_prompt(query.prompt, placeholders)
        for path in query.shown:
            _check_text("path", path)
        _check_others(query)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return query


def _read_shown(fields: dict[str, Any]) -> dict[str, Any]:
    """Images of a line: `image`, `images` or `video`, as far as it is there."""
    shown = {key: fields[key] for key in SHOWN if fields.get(key) is not None}
    if len(shown) > 1:
        raise UserError(f"{' and '.join(shown)} do not go together; give one of them")
    for key in ("image", "video"):
        if not isinstance(shown.get(key, ""), str):
            raise UserError(f'"{key}" is not a path')
    if "images" in shown:
        if not isinstance(shown["images"], list) or not all(isinstance(path, str) for path in shown["images"]):
            raise UserError('"images" is not a list of paths')
        shown["images"] = tuple(shown["images"])
    return shown


def _read_region(value: Any) -> str | tuple[float, ...]:
    if isinstance(value, list) and len(value) == 4 and all(isinstance(number, int | float) for number in value):
        return tuple(value)
    if not isinstance(value, str):
        raise UserError('"region" is no region; give a box "x0,y0,x1,y1" in pixels, or the path of a mask')
    return value


def _check_others(query: Query) -> None:
    """Refuses other keys that are an answer's, or that were probably meant to show an image."""
    for key, value in query.others.items():
        if key in RESULTS:
            raise UserError(f'"{key}" is what the answer will be called; give it another name')
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if texts and (close := [name for name in SHOWN if _is_slip(key.lower(), name)]):
            raise UserError(f'"{key}" is unknown; did you mean "{close[0]}"?')
        if not query.shown and any(Path(text).suffix.lower() in IMAGE_SUFFIXES for text in texts):
            raise UserError(f'"{key}" looks like an image; write "image", or "images" for several')


def _is_slip(key: str, name: str) -> bool:
    """Tells whether a key is probably a name with one slip in it, such as `imgae` or `image1`, and no other word."""
    return abs(len(key) - len(name)) <= 1 and bool(get_close_matches(key, [name], cutoff=0.8))
