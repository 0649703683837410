"""Text of people among the tokens of a format: nothing that is said can become a special token."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


class Said(str):
    """Text that somebody said; in it `</s>` is four letters, while in the words of a format it ends an answer."""


class TextTokenizer:
    """Tokenizes stretches of a conversation, in which words of the format and what was said take turns.

    Args:
        tokenizer: The model's tokenizer, a fast one.
        markers: Further texts that only the format may use as tokens, such as `[INST]`. They are no special tokens to
            every tokenizer; to some they are plain text, and stay that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markers: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self._added = {token.content: (number, token) for number, token in tokenizer.added_tokens_decoder.items()}
        reserved = [text for text, (_, token) in self._added.items() if token.special or text in markers]
        self._any_added = re.compile(f"({_alternatives(self._added)})")
        self._any_reserved = re.compile(_alternatives(reserved))

    def encode(self, pieces: Sequence[str]) -> list[int]:
        """Token ids of words of the format and of what was `Said`, as they follow each other."""
        if any(isinstance(piece, Said) and self._any_reserved.search(piece) for piece in pieces):
            return list(self._encode_apart(pieces))
        # Exactly as in training: the tokenizer sees it all at once.
        encoded = self.tokenizer("".join(pieces), add_special_tokens=False, verbose=False)
        ids: list[int] = encoded["input_ids"]
        return ids

    def _encode_apart(self, pieces: Sequence[str]) -> Iterator[int]:
        """The same ids, with tokens taken from the words of the format alone, and all between them as plain text."""
        text, follows_strip = "", False
        for piece in pieces:
            for index, part in enumerate([piece] if isinstance(piece, Said) else self._any_added.split(piece)):
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
        """The same tokenizer, to which every text is plain."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "truncation": None, "padding": None}))


def _alternatives(texts: Iterable[str]) -> str:
    """Regular expression that finds any of these, long ones first."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"
