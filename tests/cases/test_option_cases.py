"""Inputs that have failed before: files of options that unfold, or nest, without end."""

import time

import pytest
from case_helpers import sail, says_one_line

NESTED = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("verb", ["extract", "chat"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NESTED, "aliases (*name) are not read"),
        ("out: &a [1]\nmodel: *a\n", "aliases (*name) are not read"),
        ("out: " + "[" * 20_000 + "]" * 20_000, "nested"),
        ("out: " + "[" * 20_000, "nested"),
        ("out: " + "{a: " * 20_000, "nested"),
        ("\n".join(" " * depth + "a:" for depth in range(3000)), "nested"),
        ("out: " + "x" * 10**6 + "\nnothing: 1\n", "no option --"),
    ],
)
def test_c3_a_file_of_options_is_bounded(tmp_path, verb, text, words):
    (tmp_path / "run.yaml").write_text(text)
    started = time.perf_counter()
    done = sail(verb, "--config", tmp_path / "run.yaml", timeout=60)
    assert time.perf_counter() - started < 30
    assert says_one_line(done, words)
    assert len(done.stderr) < 5000
