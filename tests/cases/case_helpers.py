"""Running the command line, as a user does."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

from pyarrow import parquet

from sail_cli import main

MODEL = ["--model", "raw/14", "--devices", "cpu", "--readers", "2"]


def sail(*arguments, timeout=None, cwd=None, **environment):
    """Runs `sail`: in this process, or in one of its own where it may hang, or has another folder or environment."""
    if timeout or cwd or environment:
        command = [sys.executable, "-m", "sail_cli", *map(str, arguments)]
        whole = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout or 300, env=whole, cwd=cwd)
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        try:
            status = main([*map(str, arguments)])
        except SystemExit as stopped:
            status = stopped.code
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def extract(source, out, *arguments, **options):
    """Runs `sail extract` on raw patches."""
    return sail(
        "extract", *([source] if not isinstance(source, list) else source), "--out", out, *MODEL, *arguments, **options
    )


def statuses(out):
    """The state of each image, by its name."""
    return {row["path"]: row["status"] for row in parquet.read_table(out / "index.parquet").to_pylist()}


def says_one_line(done, words):
    """Whether a call has ended with status 2 and one line that has these words."""
    *_, last = done.stderr.strip().splitlines()
    return done.returncode == 2 and "Traceback" not in done.stderr and last.startswith("sail: ") and words in last
