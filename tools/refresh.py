"""Reruns the commands whose tables and pictures stand in README.md and docs, and puts in what they give now.

    python -m tools.refresh --list
    python -m tools.refresh --match "pca or similarity"
    python -m tools.refresh                              # everything; about half an hour on two cores

Pictures of the page (docs/page.md) need Chromium; `make browser` installs it.

A comment before a table or a picture says where it comes from:

    <!-- sail pca demo/photographs --out pca.png => pca.png -->
    <!-- sail probe --config configs/probe/digits.yaml => runs/probe-digits/results.md -->
    <!-- python -m evals.tiny => - table 2 -->           # the second table that is printed
    <!-- rows => results.json scores.mIoU -->            # a command with --out in the first cell of each row

Commands run in a folder of their own, where `demo/photographs` and `configs` are; each runs once. How long each took is
printed, for sentences that say so are written by hand.
"""

import argparse
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

MARK = re.compile(r"<!-- (?P<command>(?:sail|python -m) .+?|rows) => (?P<file>\S+)(?: (?P<rest>.+?))? -->\n+")
TABLE = re.compile(r"(?:\|.*\|\n)+")
PICTURE = re.compile(r"!\[[^\]]*\]\((?P<path>[^)]+)\)")
SAVING = re.compile(r"```python\n((?:(?!```).)*\.save\(.*?)```", re.DOTALL)
"""Python on a page that makes the pictures that its commands read."""

Run = Callable[[str], str]
"""Runs a command in the workplace, and gives what it prints."""


def commands_of(text: str) -> Iterator[str]:
    """Commands whose output stands on a page, in order."""
    for mark in MARK.finditer(text):
        if mark["command"] != "rows":
            yield mark["command"]
            continue
        table = TABLE.match(text, mark.end())
        yield from (command for command, _ in _rows(table[0] if table else ""))


def _rows(table: str) -> Iterator[tuple[str, str]]:
    """The command in the first cell of each row that has one, and the row."""
    for line in table.splitlines():
        if found := re.search(r"`(sail .+?)`", line):
            yield found[1], line


def renew(page: Path, workplace: Path, run: Run, is_wanted: Callable[[str], bool]) -> str:
    """Text of a page with its tables as they are now; pictures are copied to where the page shows them.

    Args:
        page: The page; it is not written.
        workplace: Folder in which the commands leave their files.
        run: Runs a command there.
        is_wanted: Tells which commands to run; what others have made stays.

    Raises:
        ValueError: If a mark has no table or picture after it, or a command has not left what the mark names.
    """
    text, done, parts = page.read_text(encoding="utf-8"), 0, []
    for mark in MARK.finditer(text):
        shown = TABLE.match(text, mark.end()) or PICTURE.match(text, mark.end())
        if shown is None:
            raise ValueError(f"{page.name}: no table or picture after {mark[0].strip()}")
        parts.append(text[done : shown.start()])
        done = shown.end()
        if mark["command"] == "rows":
            parts.append(_renew_rows(shown[0], mark, workplace, run, is_wanted))
        elif not is_wanted(mark["command"]):
            parts.append(shown[0])
        elif shown.re is PICTURE:
            run(mark["command"])
            shutil.copyfile(workplace / mark["file"], page.parent / shown["path"])
            parts.append(shown[0])
        else:
            printed = run(mark["command"])
            made = printed if mark["file"] == "-" else (workplace / mark["file"]).read_text(encoding="utf-8")
            parts.append(_table(made, mark))
    return "".join(parts) + text[done:]


def _table(made: str, mark: re.Match[str]) -> str:
    """The table that a mark names, the first by default."""
    number = int(mark["rest"].removeprefix("table ")) if mark["rest"] else 1
    tables = TABLE.findall(made.rstrip("\n") + "\n")
    if len(tables) < number:
        raise ValueError(f"{mark['file']} has {len(tables)} tables, not {number}: {mark[0].strip()}")
    return tables[number - 1]


def _renew_rows(table: str, mark: re.Match[str], workplace: Path, run: Run, is_wanted: Callable[[str], bool]) -> str:
    """A table with the number that each row's command has left in its last cell, as percent."""
    for command, line in _rows(table):
        if not is_wanted(command):
            continue
        run(command)
        words = shlex.split(command)
        values = json.loads((workplace / words[words.index("--out") + 1] / mark["file"]).read_text(encoding="utf-8"))
        share = functools.reduce(lambda value, key: value[key], mark["rest"].split("."), values)
        table = table.replace(line, re.sub(r"\|[^|]*\|$", f"| {100 * share:.1f} |", line))
    return table


def prepare(workplace: Path) -> None:
    """Puts what the pages take for granted into a folder: the photographs of `make demo` and the configurations."""
    (workplace / "configs").symlink_to(ROOT / "configs")
    run_in(workplace, "sail demo --out demo")
    for page in PAGES:
        for block in SAVING.findall(page.read_text(encoding="utf-8")):
            subprocess.run([sys.executable, "-c", block], cwd=workplace, env=_environment(), check=True)


def _environment() -> dict[str, str]:
    """Environment in which Python finds the code of this tree first."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_in(workplace: Path, command: str) -> str:
    """Runs a command with the code of this tree, says how long it took, and gives what it printed."""
    words = shlex.split(command)
    arguments = ["-m", "sail_cli", *words[1:]] if words[0] == "sail" else words[1:]
    start = time.perf_counter()
    print(f"$ {command}", flush=True)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=workplace,
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"it ended with status {done.returncode}: {command}")
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Renews the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="parts of commands to run, separated by ' or '; all by default")
    parser.add_argument("--list", action="store_true", help="print the commands, and run nothing")
    options = parser.parse_args(arguments)
    parts = options.match.split(" or ")

    def is_wanted(command: str) -> bool:
        return any(part in command for part in parts)

    wanted = {page: list(filter(is_wanted, commands_of(page.read_text(encoding="utf-8")))) for page in PAGES}
    if options.list:
        print("\n".join(dict.fromkeys(command for commands in wanted.values() for command in commands)))
        return 0
    with TemporaryDirectory() as folder:
        workplace = Path(folder)
        prepare(workplace)
        run = functools.cache(functools.partial(run_in, workplace))
        for page in (page for page, commands in wanted.items() if commands):
            page.write_text(renew(page, workplace, run, is_wanted), encoding="utf-8")
            print(f"renewed {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
