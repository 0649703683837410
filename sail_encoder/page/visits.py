"""Visits: what each visitor looks at, which no other visitor sees."""

import secrets
from copy import copy
from typing import Any

from sail_encoder.images.resizing import Size
from sail_encoder.page.conversations import Topic, Turn

TABS = {
    "similarity": "Similarity",
    "components": "PCA",
    "matches": "Matches",
    "chat": "Chat",
    "segmentation": "Classes",
}
"""Labels of the tabs, by name."""


class Visit:
    """One visitor's choices.

    Args:
        model: Name of the model.
        first: Token of the image.
        second: Token of the image to match with.

    Attributes:
        layer: Block whose features are shown, the last as long as none is chosen.
        patch: (row, column) of the chosen patch.
        tab: Name of the open tab.
        turns: What was said about the image to the model.
        visitor: A name that cannot be guessed.
    """

    def __init__(self, model: str, first: str, second: str) -> None:
        self.model, self.first, self.second = model, first, second
        self.layer = -1
        self.patch: Size = (0, 0)
        self.tab = next(iter(TABS))
        self.turns: list[Turn] = []
        self.visitor = secrets.token_urlsafe(24)

    @property
    def topic(self) -> Topic:
        """Subject of a conversation."""
        return self.visitor, self.first, self.model

    def changed(self, **changes: Any) -> "Visit":
        """A copy with other choices."""
        other = copy(self)
        other.change(**changes)
        return other

    def change(self, **changes: Any) -> None:
        """Makes other choices; those that were made meanwhile stay."""
        vars(self).update(changes)
