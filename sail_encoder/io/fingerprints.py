"""Short names for content."""

import hashlib
import json
from typing import Any


def digest(content: Any) -> str:
    """Name of 32 hexadecimal digits for JSON, equal for what is equal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
