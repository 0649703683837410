"""Report of an error that no command expects: one line for the user, a file for the developers."""

import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from sail_encoder.io.errors import in_one_line
from sail_encoder.io.versions import versions


def save_report(error: Exception, arguments: Sequence[str]) -> str:
    """Writes the traceback, the versions and the command into a new file beside the command's output.

    Args:
        error: What was raised.
        arguments: What was typed after `sail`.

    Returns:
        The line for the user, which names the file.
    """
    text = "\n".join(
        [
            f"command   sail {shlex.join(arguments)}",
            f"versions  {json.dumps(versions())}",
            f"platform  {sys.platform}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    name = f"sail-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (_output_folder(arguments), Path(tempfile.gettempdir())):
        try:
            with open(folder / name, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            continue
        return f"unexpected {in_one_line(error)}; please report it with {folder / name}"
    return f"unexpected {in_one_line(error)}; please report it"


def _output_folder(arguments: Sequence[str]) -> Path:
    """Folder that `--out` names, or the nearest that exists above it; the working folder without `--out`."""
    given = [*arguments, ""]
    pairs = (
        text if separator else given[index + 1]
        for index, argument in enumerate(arguments)
        for option, separator, text in [argument.partition("=")]
        if option in ("--out", "--output")
    )
    out = Path(next(pairs, ".") or ".").absolute()
    return next(folder for folder in (out, *out.parents) if folder.is_dir())
