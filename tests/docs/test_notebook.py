"""The notebook runs from top to bottom, and its figures show what its text says."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_steps.ipynb"


def test_it_runs_from_top_to_bottom():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["right"].mean() > 0.8
    assert float(names["similarity"].max()) == float(names["similarity"][names["row"], names["column"]])
    assert len(names["chat"].messages) == 4


def test_it_stands_as_it_ran():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} == {"execute_result", "display_data"}
