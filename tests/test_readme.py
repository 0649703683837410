"""Every command and every line of Python in README.md, in order, as a newcomer would run them.

Three things stand in: a checkpoint in the published format for SAIL-7B, which cannot be downloaded here, `--help` for
measurements that take minutes, and `--print_config` for probes, comparisons, segmentation and the page, which have
tests of their own.
"""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import sail_cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)
PARSED_ONLY = ("probe", "sweep", "compare", "segment")
SAIL_7B = "ByteDance-Seed/SAIL-7B"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what `make demo` leaves, a user's own photographs, and questions."""
    for folder in ("demo/photographs", "photos", "more"):
        (tmp_path / folder).mkdir(parents=True)
    for pixels, name in zip(load_sample_images().images, ("china", "flower"), strict=True):
        Image.fromarray(pixels).save(tmp_path / "demo" / "photographs" / f"{name}.png")
        Image.fromarray(pixels).save(tmp_path / "photos" / f"mine_{name}.png")
        Image.fromarray(pixels).resize((90, 60)).save(tmp_path / "more" / f"small_{name}.jpg")
    [line] = re.findall(r"has lines such as `(.*?)`", README)
    (tmp_path / "prompts.jsonl").write_text(line + "\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path


def run(line, published_tiny, monkeypatch):
    stand_in = line.replace(SAIL_7B, str(published_tiny)).replace("--layers 24", "--layers 4")
    words = shlex.split(stand_in, comments=True)
    if words[0] == "sail" and (words[1] in PARSED_ONLY or "--page" in words):
        with pytest.raises(SystemExit) as ended:
            sail_cli.main([*words[1:], "--print_config"])
        assert ended.value.code == 0, line
    elif words[0] == "sail":
        monkeypatch.setattr(sys, "argv", words)
        assert sail_cli.main(words[1:]) == 0, line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    else:
        assert words[:2] == ["python", "-m"], line
        subprocess.run([sys.executable, *words[1:3], "--help"], cwd=ROOT, check=True, capture_output=True)


def test_everything_in_order(workplace, published_tiny, monkeypatch):
    names = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "<README.md>", "exec"), names)
            continue
        for line in filter(None, (line.strip() for line in block.splitlines())):
            run(line, published_tiny, monkeypatch)
    assert names["grid"].ndim == 3
    assert len(json.loads(Path("answers.jsonl").read_text())["answer"]) > 0


def test_the_table_of_commands_is_complete():
    table = re.findall(r"^\| `sail ([a-z]+)", README, re.MULTILINE)
    assert sorted(set(table)) == sorted({name.split()[0] for name in sail_cli.COMMANDS})


def test_every_linked_file_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
