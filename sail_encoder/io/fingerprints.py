"""The one recipe by which content gets a short name: SHA-256, in hexadecimal, cut."""

import hashlib
import json
from typing import Any

from sail_encoder.io.files import StrPath, open_regular

LENGTH = 16
"""Hexadecimal digits, 64 bits: two of a million names are equal with a probability of 3e-8."""


def digest(content: Any, length: int = LENGTH) -> str:
    """A name for content, equal for what is equal.

    Args:
        content: Bytes or text as they are, or else JSON, in which the order of keys does not matter.
        length: Hexadecimal digits, 64 at most.
    """
    if isinstance(content, str):
        content = content.encode()
    elif not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:length]


def digest_file(path: StrPath, length: int = LENGTH) -> str:
    """A name for all that is in a regular file."""
    hashed = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            hashed.update(block)
    return hashed.hexdigest()[:length]
