"""Every command and every line of Python in README.md, in order, as a newcomer would run them.

Two things stand in: a checkpoint in the published format for SAIL-7B, which cannot be downloaded here, and `--help` for
measurements that take minutes.
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
from sail_encoder.hub import find_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)
SAIL_7B = "ByteDance-Seed/SAIL-7B"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """sail-tiny's weights as the Hub holds SAIL-7B: the config says "mistral" and lacks the ids of vision tokens."""
    folder, native = tmp_path_factory.mktemp("published"), find_checkpoint("sail-tiny")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(native / name)
    config = json.loads((native / "config.json").read_text())
    missing = ("vision_start_token_id", "image_token_id", "vision_end_token_id", "unused_vision_token_ids")
    config = {key: value for key, value in config.items() if key not in missing} | {"model_type": "mistral"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with photographs and questions, as the README takes for granted."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "more").mkdir()
    for pixels, name in zip(load_sample_images().images, ("china", "flower"), strict=True):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
        Image.fromarray(pixels).resize((90, 60)).save(tmp_path / "more" / f"small_{name}.jpg")
    [line] = re.findall(r"has lines such as `(.*?)`", README)
    (tmp_path / "prompts.jsonl").write_text(line + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path


def run(line, published, monkeypatch):
    stand_in = line.replace(SAIL_7B, str(published)).replace("--layers 24", "--layers 4")
    words = shlex.split(stand_in, comments=True)
    if words[0] == "sail":
        monkeypatch.setattr(sys, "argv", words)
        assert sail_cli.main(words[1:]) == 0, line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    else:
        assert words[:2] == ["python", "-m"], line
        subprocess.run([sys.executable, *words[1:3], "--help"], cwd=ROOT, check=True, capture_output=True)


def test_everything_in_order(workplace, published, monkeypatch):
    names = {}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "<README.md>", "exec"), names)
            continue
        for line in filter(None, (line.strip() for line in block.splitlines())):
            run(line, published, monkeypatch)
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
