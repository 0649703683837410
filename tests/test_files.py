"""A file is there as a whole or not at all."""

import json

import pytest

from sail_encoder.io.files import replacing, write_json


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "table.csv"
    for text in ("first", "second"):
        with replacing(path) as unfinished:
            unfinished.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


def write_half(path):
    with replacing(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt


def test_what_was_there_stays_when_writing_fails(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_json(path, {"no JSON": object()})
    assert path.read_text() == "before"


def test_json_has_no_nan(tmp_path):
    content = {"a": float("nan"), "b": [1.5, (float("inf"), "x")], "c": {"d": None}}
    write_json(tmp_path / "a.json", content)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, [None, "x"]], "c": {"d": None}}
