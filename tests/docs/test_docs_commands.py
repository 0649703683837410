"""Every command in docs, in the comments of configurations and in the headers of benchmarks can be given as it stands.

`sail` reads it with `--print_config`, so that options, values and configuration files are checked and nothing runs.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import sail_cli

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PROGRAMS = ("sail ", "python ", "torchrun ")


def in_code(page):
    """Lines of fenced blocks but for Python, indented lines, and code inside of sentences and tables."""
    text = re.sub(r"```python\n.*?```", "", page, flags=re.DOTALL)
    fenced = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [line.strip() for block in fenced for line in block.splitlines()] + indented + inline


def in_comments(text):
    """Lines of comments, where a backslash at the end goes on in the next."""
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    return "\n".join(comments).replace("\\\n", " ").splitlines()


def commands():
    for path in [*PAGES, *CONFIGS, *BENCHMARKS]:
        text = path.read_text(encoding="utf-8")
        lines = in_code(text) if path.suffix == ".md" else in_comments(text)
        if path.suffix == ".py":
            lines = [line.strip() for line in text.split('"""')[1].splitlines() if line.startswith("    ")]
        for line in dict.fromkeys(line for line in lines if line.startswith(PROGRAMS)):
            yield pytest.param(path, line, id=f"{path.name}-{line}")


def parse(words, capsys):
    with pytest.raises(SystemExit) as ended:
        sail_cli.main([*words, "--print_config"])
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(("path", "line"), list(commands()))
def test_it_can_be_given(path, line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "3"), comments=True)
    if words[0] == "sail" and " ".join(words[1:]) in {*sail_cli.COMMANDS, "segment", "chat --input"}:
        return  # the command is only mentioned
    if words[0] == "sail":
        parse(words[1:], capsys)
    elif "sail_cli" in words:
        parse(words[words.index("sail_cli") + 1 :], capsys)
    elif words[-1] == "train.py":
        assert "this as `train.py`" in path.read_text()
    else:
        assert words[:2] == ["python", "-m"]
        assert importlib.util.find_spec(words[2])


def test_commands_are_found():
    found = [param.values for param in commands()]
    assert {path for path, _ in found} >= {
        *CONFIGS,
        ROOT / "docs/protocols.md",
        ROOT / "docs/segmentation_protocols.md",
    }
    assert any("+ms" in path.read_text() and "--jitter [1.0,3.0]" in line for path, line in found)


def test_every_python_example_compiles():
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, page.name, "exec")
