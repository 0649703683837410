"""Sampling: the choice of an answer among all that a model might say."""

from dataclasses import dataclass
from typing import Any

from sail_encoder.io.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Choice of an answer.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time; higher values sample more freely.
        top_p: Sample among the likeliest tokens that together have this probability.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"max_new_tokens {self.max_new_tokens}, temperature {self.temperature}, top_p {self.top_p}: allowed is "
                "1 or more, 0 or more, and above 0 up to 1"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {**sampling, "max_new_tokens": self.max_new_tokens}
