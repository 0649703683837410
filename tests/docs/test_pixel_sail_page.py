"""The example of docs/pixel-sail.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np
from pixel_sail_golden import CHECKPOINT, IMAGE

PAGE = Path(__file__).parents[2] / "docs" / "pixel-sail.md"


def test_the_example_finds_masks(tmp_path, monkeypatch):
    [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pixel").symlink_to(CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, str(PAGE), "exec"), names)
    text, masks = names["find"](IMAGE, "the 1")
    assert text.count("[SEG]") == len(masks) > 0
    _, others = names["find"](IMAGE, "the 1 beside <Prompt0>", region="10,20,80,50")
    assert masks.shape[1:] == others.shape[1:] == (60, 90)
    assert np.array_equal(names["find"](IMAGE, "the 1")[1], masks)
