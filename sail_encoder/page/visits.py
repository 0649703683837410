"""Visits: what each visitor looks at, which no other visitor sees."""

import secrets
from dataclasses import dataclass, field

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


@dataclass
class Visit:
    """One visitor's choices.

    Attributes:
        model: Name of the model.
        first: Token of the image.
        second: Token of the image to match with.
        layer: Block whose features are shown.
        patch: (row, column) of the chosen patch.
        tab: Name of the open tab.
        turns: What was said about the image to the model.
        visitor: A name that cannot be guessed.
    """

    model: str
    first: str
    second: str
    layer: int = -1
    patch: Size = (0, 0)
    tab: str = next(iter(TABS))
    turns: list[Turn] = field(default_factory=list)
    visitor: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def topic(self) -> Topic:
        """What a conversation is about."""
        return self.visitor, self.first, self.model

    def become(self, other: "Visit") -> None:
        """Takes over the choices of another; the same object stays in the session."""
        vars(self).update(vars(other))
