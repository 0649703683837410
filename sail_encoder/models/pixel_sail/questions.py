"""Questions: what may be asked, and how a mask is asked for."""

from sail_encoder.io.errors import UserError
from sail_encoder.models.pixel_sail.tokens import NO_PROMPT, SEG, VISUAL_PROMPTS
from sail_encoder.models.sail.config_file import VISION_TOKENS

REGION = VISUAL_PROMPTS[0]
"""Name of the region in a question about one."""

_RESERVED = (*VISION_TOKENS.values(), SEG, NO_PROMPT)
"""Tokens that stand for images or masks, and are not said."""


def refer(expression: str) -> str:
    """Words a question for the mask of what an expression refers to, as in the published evaluation.

    It begins with a space there, which comes after the image.

    Raises:
        UserError: If the expression is empty.
    """
    words = expression.strip().removesuffix(".")
    if not words:
        raise UserError('the expression is empty; say what to segment, such as "the red circle"')
    return f" Please segment {words} in this image."


def check_question(question: str, has_region: bool) -> None:
    """Makes sure that a question can be asked.

    Raises:
        UserError: If it is empty, holds a token that is not said, or does not name the region that there is.
    """
    if not question.strip():
        raise UserError("the question is empty; ask something")
    for token in _RESERVED:
        if token in question:
            raise UserError(f"the question holds {token}, which stands for an image or a mask; leave it out")
    named = [token for token in VISUAL_PROMPTS if token in question]
    if has_region and named != [REGION]:
        raise UserError(f'there is a region, so the question has to name it, as {REGION}: "the ball beside {REGION}"')
    if named and not has_region:
        raise UserError(f"the question names {named[0]}, but there is no region; give one, or ask without")
