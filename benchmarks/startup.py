"""How long `sail --help` and `import sail_encoder` take, each in a process of its own; the median of several.

python -m benchmarks.startup
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import sail_encoder": ["-c", "import sail_encoder"],
    "sail --help": ["-m", "sail_cli", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """How long Python takes with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Runs the commands in turns and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = range(parser.parse_args().rounds)
    times = [[seconds(arguments) for arguments in COMMANDS.values()] for _ in rounds]
    for name, taken in zip(COMMANDS, zip(*times, strict=True), strict=True):
        print(f"{name:20} {statistics.median(taken):.2f} s")


if __name__ == "__main__":
    main()
