"""The process of one device: `sail extract` with the arguments that come as a line of JSON on its standard input.

They may be more than a command line holds. The input stays open until the process that has started this one ends, which
ends this one too, as a second SIGTERM or a kill of the first would otherwise leave it working on its own.
"""

import json
import os
import signal
import sys
import threading
import traceback

from sail_encoder.extraction.workers import CRASHED
from sail_encoder.io.errors import UserError, in_one_line


def main() -> int:
    """Runs the request, and returns its exit status."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_first, name="parent", daemon=True).start()
    try:
        from sail_encoder.commands.extract import extract

        return extract(**request)
    except (UserError, OSError) as error:
        print(f"sail: {in_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
        return CRASHED


def _end_with_the_first() -> None:
    # Nothing more is written there, so that this returns when the other end is closed.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
