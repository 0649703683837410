"""Tables and pictures of pages are renewed by the commands beside them."""

import json
from pathlib import Path

import pytest

from tools import refresh

PAGE = """# Page

Text | with a bar.

<!-- sail probe digits --out runs/digits => runs/digits/results.md -->
| | top-1 |
|---|---:|
| old | 1 |

<!-- python -m evals.tiny => - table 2 -->
| old |

<!-- rows => results.json scores.mIoU -->
| | mIoU |
|---|---:|
| a head: `sail segment train scenes --out runs/a` | 1.0 |
| by others | 2.0 |

<!-- sail pca photo.png --out pca.png => pca.png -->
![Colors](pictures/pca.png)
The end.
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    path = tmp_path / "docs" / "page.md"
    path.write_text(PAGE)
    return path


@pytest.fixture
def workplace(tmp_path):
    for folder in ("digits", "a"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def run(workplace):
    """Leaves what each command would."""

    def leave(command):
        leave.given.append(command)
        (workplace / "runs/digits/results.md").write_text("| | top-1 % |\n| - | -: |\n| new | 99 |\n\n- note\n")
        (workplace / "runs/a/results.json").write_text(json.dumps({"scores": {"mIoU": 0.4567}}))
        (workplace / "pca.png").write_bytes(b"new")
        return "| first |\n\n| second |\n"

    leave.given = []
    return leave


def test_each_kind_is_renewed_and_the_rest_stays(page, workplace, run):
    text = refresh.renew(page, workplace, run, lambda command: True)
    assert (page.parent / "pictures/pca.png").read_bytes() == b"new"
    expected = PAGE.replace("| | top-1 |\n|---|---:|\n| old | 1 |", "| | top-1 % |\n| - | -: |\n| new | 99 |")
    expected = expected.replace("| old |\n", "| second |\n").replace("runs/a` | 1.0 |", "runs/a` | 45.7 |")
    assert text == expected
    assert run.given == list(refresh.commands_of(PAGE))
    page.write_text(text)
    assert refresh.renew(page, workplace, run, lambda command: True) == text


def test_what_is_not_asked_for_is_not_run(page, workplace, run):
    text = refresh.renew(page, workplace, run, lambda command: "pca" in command)
    assert text == PAGE
    assert run.given == ["sail pca photo.png --out pca.png"]


@pytest.mark.parametrize(
    ("page_text", "message"),
    [
        ("<!-- sail pca a.png => pca.png -->\nNo picture.\n", "no table or picture after"),
        ("<!-- python -m evals.tiny => - table 3 -->\n| old |\n", "has 2 tables, not 3"),
    ],
)
def test_a_mark_that_leads_nowhere(page, workplace, run, page_text, message):
    page.write_text(page_text)
    with pytest.raises(ValueError, match=message):
        refresh.renew(page, workplace, run, lambda command: True)


def test_a_command_runs_with_the_code_of_this_tree(tmp_path):
    assert "layers" in refresh.run_in(tmp_path, "sail info raw/14")
    with pytest.raises(SystemExit, match="ended with status 2: sail info nowhere"):
        refresh.run_in(tmp_path, "sail info nowhere")


def test_every_picture_of_the_pages_has_a_command():
    for page in refresh.PAGES:
        text = page.read_text()
        made = {Path(refresh.PICTURE.match(text, mark.end())["path"]).name for mark in pictures(text)}
        assert {Path(shown["path"]).name for shown in refresh.PICTURE.finditer(text)} == made, page.name


def pictures(text):
    return [mark for mark in refresh.MARK.finditer(text) if refresh.PICTURE.match(text, mark.end())]
