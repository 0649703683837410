"""Writing to the end of a file, past Python's buffers."""

import os
from typing import Any


def append_all(descriptor: int, data: Any) -> None:
    """Writes all bytes of a contiguous buffer.

    Nothing waits in memory, so that after an error, as on a full disk, closing the file does not fail once more.

    Raises:
        OSError: If not all can be written; some bytes may have been.
    """
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
