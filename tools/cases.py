"""Runs the cases of this tree on the code of another commit too, and prints both outcomes of each.

    python -m tools.cases --worktree e29043d
    python -m tools.cases --worktree ../before --match "b3 or b4"

A commit is checked out into a folder for the time of the run; an existing folder is taken as it is. Names that the
other code does not have are shown as `import`, and say nothing about the case.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

HERE = Path(__file__).parents[1]
CASES = HERE / "tests" / "cases"
_MISSING = ("ImportError", "ModuleNotFoundError")


@contextmanager
def checkout(place: str) -> Iterator[Path]:
    """Folder with the code of a commit, or of a folder that is there."""
    if Path(place).is_dir():
        yield Path(place).resolve()
        return
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "code"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), place], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run_cases(code: Path, match: str, tests: Path = CASES) -> dict[str, str]:
    """Outcome of each case on the code in a folder: `passed`, `failed`, `skipped` or `import`, by its name.

    The shared fixtures of the tests are left out, since they import what other code does not have. A case that takes
    longer than a minute has failed.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = [str(code), str(HERE / "tests"), str(CASES), str(tests)]
        command = [sys.executable, "-m", "pytest", str(tests), "-k", match, "-c", os.devnull, f"--rootdir={folder}"]
        command += [
            "--noconftest",
            "--import-mode=importlib",
            "--continue-on-collection-errors",
            "-q",
            *("-p", "no:cacheprovider"),
            *("-p", "case_limit"),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        subprocess.run([*command, f"--junitxml={report}"], cwd=folder, env=environment, stdout=sys.stderr, check=False)
        return dict(map(_outcome, ElementTree.parse(report).iter("testcase")))


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    # What could not even be collected has no class, and the module as its name.
    module = str(case.get("classname") or case.get("name")).rpartition(".")[2]
    name = f"{module}::{case.get('name')}" if case.get("classname") else module
    problems = [*case.iter("failure"), *case.iter("error")]
    if problems:
        texts = "\n".join(f"{problem.get('message')}\n{problem.text}" for problem in problems)
        return name, "import" if any(f"{kind}: " in texts for kind in _MISSING) else "failed"
    return name, "skipped" if case.find("skipped") is not None else "passed"


def compare(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Lines of Markdown: each case with its outcome on other code and here."""
    yield "| Case | Other code | This code |"
    yield "|---|---|---|"
    for name in sorted({*old, *new}):
        module = name.partition("::")[0]
        # A module that the other code cannot import has none of its cases there.
        before = old.get(name, old.get(module, "-"))
        if name != module or name in new:
            yield f"| {name} | {before} | {new.get(name, '-')} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where a case fails on this code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worktree", required=True, help="a commit, or a folder with other code")
    parser.add_argument("--match", default="", help="which cases, as in pytest -k")
    options = parser.parse_args(arguments)
    with checkout(options.worktree) as code:
        old = run_cases(code, options.match)
    new = run_cases(HERE, options.match)
    print("\n".join(compare(old, new)))
    fixed = sum(old.get(name) == "failed" and outcome == "passed" for name, outcome in new.items())
    print(f"\n{fixed} of {len(new)} cases fail on the other code and pass here")
    return int("failed" in new.values())


if __name__ == "__main__":
    sys.exit(main())
