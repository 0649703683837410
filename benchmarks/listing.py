"""Seconds and memory until the first images of a long list are in the journal.

    python -m benchmarks.listing                                # ten million paths that do not exist, .txt and .parquet
    python -m benchmarks.listing --images 1000000 --existing    # a million links to one photograph

Each list is given to `sail extract` in a process of its own, which is stopped as soon as its journal has a line. Memory
is the peak of that process, as the system counts it.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

LENGTH = 60
"""Characters of a path."""

IN_A_FOLDER = 1000
LINKS_TO_A_FILE = 30_000
"""Names that one file may have; file systems allow 65,000 or so."""

STEP = 100_000


def path_of(number: int) -> str:
    """Path of an image, relative to the list; neighbours share a folder."""
    folder, name = f"photographs/{number // IN_A_FOLDER:08d}", f"{number:012d}.jpg"
    return f"{folder}/{'x' * (LENGTH - len(folder) - len(name) - 1)}{name}"


def paths(count: int) -> Iterator[list[str]]:
    """All paths, some at a time."""
    for start in range(0, count, STEP):
        yield [path_of(number) for number in range(start, min(start + STEP, count))]


def write_list(file: Path, count: int) -> None:
    """Writes a list whose kind its suffix says."""
    if file.suffix == ".txt":
        with file.open("w") as lines:
            for some in paths(count):
                lines.write("\n".join(some) + "\n")
        return
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([("path", pyarrow.string())])
    with parquet.ParquetWriter(file, schema) as writer:
        for some in paths(count):
            writer.write_table(pyarrow.table({"path": some}, schema=schema))


def make_images(folder: Path, count: int) -> None:
    """Makes the images, as names of a few files."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for number in range(count):
        path = folder / path_of(number)
        if number % IN_A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        if number % LINKS_TO_A_FILE == 0:
            first = path
            Image.fromarray(noise).save(path)
        else:
            os.link(first, path)


def measure(file: Path, out: Path) -> tuple[float, int]:
    """Seconds until the journal has a line, and the peak of the process's memory in bytes."""
    options = ["--out", str(out), "--model", "raw/14", "--resize", "224", "--pool", "mean", "--devices", "cpu"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sail_cli", "extract", str(file), *options], stderr=subprocess.DEVNULL
    )
    journal = out / "journal.jsonl"
    while not (journal.exists() and journal.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"sail extract has ended with status {process.returncode} before its first images")
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    process.send_signal(signal.SIGINT)
    _, _, usage = os.wait4(process.pid, 0)
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Writes the lists and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--kinds", nargs="+", default=["txt", "parquet"], choices=["txt", "parquet"])
    parser.add_argument("--existing", action="store_true", help="make the images; by default none exists")
    parser.add_argument("--folder", help="where to make lists and images, a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.existing:
            make_images(folder, options.images)
        for kind in options.kinds:
            file = folder / f"list.{kind}"
            write_list(file, options.images)
            seconds, memory = measure(file, folder / f"out-{kind}")
            print(f".{kind:8} {options.images:,} images  {seconds:6.1f} s to the first pack  {memory / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
