"""Tokens that Pixel-SAIL adds to the vocabulary of a SAIL."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEG = "[SEG]"
"""Stands in an answer for a mask."""

PHRASE_TOKENS = ("<p>", "</p>")
"""Open and close the words of an answer that a mask belongs to."""

VISUAL_PROMPTS = tuple(f"<Prompt{number}>" for number in range(15))
"""Names of regions in a question."""

NO_PROMPT = "<NO_Prompt>"
"""Was meant for patches outside all regions; the published code adds it and leaves its embedding unused."""

ADDED_TOKENS = (SEG, *PHRASE_TOKENS, *VISUAL_PROMPTS, NO_PROMPT)
"""All of them, in the published order."""


def add_pixel_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Adds the tokens of Pixel-SAIL that a tokenizer does not have yet, as special tokens.

    Returns:
        Id of each of `ADDED_TOKENS`.
    """
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    return dict(zip(ADDED_TOKENS, tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)), strict=True))
