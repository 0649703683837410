"""The calls of docs/from-internvl.md give what the published code gave for the calls of the model card."""

import re
from pathlib import Path

import pytest
from sail_vl_golden import golden_set

DOC = Path(__file__).parents[2] / "docs/from-internvl.md"


@pytest.fixture(scope="module")
def session():
    """Names of the page's example after it ran on the recorded checkpoint."""
    golden = golden_set("sail_vl2")
    [example] = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    example = example.replace("BytedanceDouyinContent/SAIL-VL2-2B", str(golden.checkpoint))
    example = example.replace("max_tiles=10", f'max_tiles={golden.facts["max_num"]}, dtype="float32"')
    example = re.sub(r'"(image\d\.png)"', lambda match: repr(str(golden.folder / match[1])), example)
    names: dict = {}
    exec(example, names)
    return names


@pytest.mark.parametrize(
    ("name", "case"),
    [("single", "single"), ("continued", "multi_turn"), ("compared", "two_images"), ("of_text", "text_only")],
)
def test_the_answers_are_the_recorded_ones(session, name, case):
    responses = {recorded["name"]: recorded["response"] for recorded in golden_set("sail_vl2").facts["cases"]}
    assert session[name] == responses[case]


def test_the_batch_answers_as_one_by_one(session):
    assert session["together"][0] == session["single"]
    assert len(session["together"]) == 2


def test_the_options_of_the_table_exist(session):
    from inspect import signature

    from sail_encoder import Sampling, load_chat

    assert {"max_tiles", "thinking"} <= set(signature(load_chat).parameters)
    assert Sampling(1024, temperature=1.0).options["do_sample"] is True
    assert session["chat"].engine.sampling == Sampling(1024)
