"""Text of people among the words of a format: nothing that somebody says can become a special token."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from sail_encoder.io.errors import UserError

Message = dict[str, Any]
"""A turn of a conversation as transformers' chat templates take it: `role` and `content`."""

_MARK = re.compile("\ue000(\\d+)\ue001")
"""Stand-in for a text while a template is filled in, in characters that no template writes."""


class Said(str):
    """Text that somebody said; in it `</s>` is four letters, while in the words of a format it ends an answer."""


def render_turn(
    processor: ProcessorMixin, earlier: Sequence[Message], turn: Sequence[Message], placeholder: str
) -> list[str]:
    """Writes the next turn of a conversation with the processor's chat template.

    Args:
        processor: Has the template.
        earlier: Messages up to there, which a template writes as they are, whatever follows.
        turn: A question, or a question and its answer.
        placeholder: Text that stands for an image, in the template and in contents that are plain text.

    Returns:
        Words of the format, and what was `Said` among them, in order.
    """
    said: list[str] = []
    marked = [{**message, "content": _mark(message["content"], said, placeholder)} for message in (*earlier, *turn)]
    asks = turn[-1]["role"] == "user"
    text = processor.apply_chat_template(marked, tokenize=False, add_generation_prompt=asks)
    if earlier:
        text = text.removeprefix(processor.apply_chat_template(marked[: len(earlier)], tokenize=False))
    pieces = _MARK.split(text)
    return [Said(said[int(piece)]) if index % 2 else piece for index, piece in enumerate(pieces)]


def _mark(content: Any, said: list[str], placeholder: str) -> Any:
    """The content of a message with each text replaced by its mark; the texts are added to `said`."""
    if not isinstance(content, str):
        return [{**part, "text": _mark_text(part["text"], said)} if "text" in part else part for part in content]
    return placeholder.join(_mark_text(text, said) for text in content.split(placeholder))


def _mark_text(text: str, said: list[str]) -> str:
    said.append(text)
    return f"\ue000{len(said) - 1}\ue001"


class TextTokenizer:
    """Tokenizes stretches of a conversation, in which words of the format and what was said take turns.

    Args:
        tokenizer: The model's tokenizer.
        markers: Further texts that only the format may use as tokens, such as `[INST]`. To some tokenizers they are
            tokens, although no special ones; to others they are plain text, and stay that.
        sayable: Special tokens that people may use, too.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, markers: Sequence[str] = (), sayable: Collection[str] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self._added = {token.content: (number, token) for number, token in tokenizer.added_tokens_decoder.items()}
        special = [text for text, (_, token) in self._added.items() if token.special or text in markers]
        reserved = [text for text in special if text not in sayable]
        self._any_added = re.compile(f"({_alternatives(self._added)})")
        self._any_sayable = re.compile(f"({_alternatives(sayable)})")
        self._any_reserved = re.compile(_alternatives(reserved))

    def encode(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of words of the format and of what was `Said`, as they follow each other.

        Raises:
            UserError: If something said holds a special token, and the tokenizer cannot take it as plain text.
        """
        for piece in pieces:
            if isinstance(piece, Said) and (found := self._any_reserved.search(piece)):
                self._require_plain(found[0])
                return list(self._encode_apart(pieces))
        # Exactly as in training: the tokenizer sees it all at once.
        encoded = self.tokenizer("".join(pieces), add_special_tokens=False, verbose=False)
        ids: list[int] = encoded["input_ids"]
        return ids

    def _require_plain(self, token: str) -> None:
        if not self.tokenizer.is_fast:
            raise UserError(f"the prompt holds {token}, a token of the format; write it in another way")

    def _encode_apart(self, pieces: Sequence[str]) -> Iterator[int]:
        """The same ids, with tokens taken from the words of the format, and of what was said only the sayable ones."""
        text, follows_strip = "", False
        for piece in pieces:
            tokens = self._any_sayable if isinstance(piece, Said) else self._any_added
            for index, part in enumerate(tokens.split(piece)):
                if index % 2 == 0:
                    text += part
                    continue
                number, token = self._added[part]
                yield from self._encode_plain(text, follows_strip, token.lstrip)
                yield number
                text, follows_strip = "", token.rstrip
        yield from self._encode_plain(text, follows_strip, False)

    def _encode_plain(self, text: str, strip_left: bool, strip_right: bool) -> list[int]:
        text = text.lstrip() if strip_left else text
        text = text.rstrip() if strip_right else text
        return self._plain.encode(text, add_special_tokens=False).ids if text else []

    @cached_property
    def _plain(self) -> Tokenizer:
        """The same tokenizer without added tokens, so that every text is plain to it."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))


def split_after(pieces: Sequence[str], split: Callable[[str], list[str]]) -> list[list[str]]:
    """Cuts words of the format where `split` says, and never what was `Said`; empty stretches are left out."""
    stretches: list[list[str]] = [[]]
    for piece in pieces:
        first, *others = [piece] if isinstance(piece, Said) else split(piece)
        stretches[-1].append(first)
        stretches += [[other] for other in others]
    return [stretch for stretch in stretches if any(stretch)]


def _alternatives(texts: Iterable[str]) -> str:
    """Regular expression that finds any of these, long ones first."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"
