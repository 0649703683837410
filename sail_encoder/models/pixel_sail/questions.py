"""Questions: what may be asked, and how a mask is asked for."""

from sail_encoder.io.errors import UserError
from sail_encoder.models.pixel_sail.tokens import SEG, VISUAL_PROMPTS

ANSWER = f"It is {SEG}."
"""Answer to such a question in training."""

NO_TARGET = "There is none."
"""The same where nothing in the image is meant."""

REGION = VISUAL_PROMPTS[0]
"""Name of the region in a question about one."""


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


def check_region(question: str, is_shown: bool, is_known: bool = False) -> None:
    """Makes sure that a question names the region that there is, and no other.

    Args:
        question: The question.
        is_shown: Whether a region is shown with it.
        is_known: Whether one was shown before.

    Raises:
        UserError: If it does not.
    """
    named = [token for token in VISUAL_PROMPTS if token in question]
    if is_shown and named != [REGION]:
        raise UserError(f'there is a region, so the question has to name it, as {REGION}: "the ball beside {REGION}"')
    if named and not is_shown and not (is_known and named == [REGION]):
        raise UserError(f"the question names {named[0]}, but there is no region; give one, or ask without")
