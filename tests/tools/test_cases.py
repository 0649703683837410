from tools.cases import compare, run_cases

CASES = """
import pytest

def test_a1():
    import code_under_test
    assert code_under_test.VALUE == 2

def test_a2():
    from code_under_test import missing

@pytest.mark.skip
def test_a3(): ...

def test_b1(): ...
"""

ENDLESS = """
import case_limit, time
case_limit.SECONDS = 1

def test_a1():
    while True:
        time.sleep(0.01)
"""


def test_outcomes_of_two_versions(tmp_path):
    for name, value in (("old", 1), ("new", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code_under_test.py").write_text(f"VALUE = {value}\n")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "test_some.py").write_text(CASES)
    (tmp_path / "cases" / "test_other.py").write_text("from code_under_test import later\n\ndef test_c1(): ...\n")
    (tmp_path / "new" / "code_under_test.py").write_text("VALUE = 2\nlater = missing = 1\n")
    old, new = (run_cases(tmp_path / name, "not b1", tmp_path / "cases") for name in ("old", "new"))
    assert list(compare(old, new))[2:] == [
        "| test_other::test_c1 | import | passed |",
        "| test_some::test_a1 | failed | passed |",
        "| test_some::test_a2 | import | passed |",
        "| test_some::test_a3 | skipped | skipped |",
    ]


def test_a_case_that_never_ends_has_failed(tmp_path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "test_some.py").write_text(ENDLESS)
    assert run_cases(tmp_path, "", tmp_path / "cases") == {"test_some::test_a1": "failed"}
