"""Reports that can be pasted: what stands under a table, marks and warnings at the edges of grids, LaTeX."""

import json
import re

import pytest
from helpers import results_in

from evals.report import check_reports, write_tables
from evals.results import is_at_edge
from sail_cli import main


def facts_in(path):
    """Facts of a report by name; of several with one name the last."""
    return dict(line[2:].split(": ", 1) for line in path.read_text().splitlines() if line.startswith("- "))


@pytest.fixture
def probe(pets, small_checkpoint, tmp_path):
    def run(probes, *options):
        (tmp_path / "probes.yaml").write_text(json.dumps({"probes": probes}))
        command = ["probe", str(pets), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
        assert main([*command, "--config", str(tmp_path / "probes.yaml"), "--plots", "false", *options]) == 0
        return tmp_path / "out"

    return run


def test_a_probe_says_how_its_numbers_were_made(probe, small_checkpoint):
    rates = [0.01, 0.1]
    out = probe({"linear": {"steps": 7, "learning_rates": rates, "batch_size": 16}, "ridge": {}}, "--seeds", "2")
    facts = facts_in(out / "results.md")
    assert facts["data"] == "pets0, classification"
    assert facts["split"].startswith("44 for training, 4 for validation, 12 for testing")
    assert facts["seeds"] == "0, 1"
    assert facts["mode"] == "features that were extracted once"
    weights = json.loads(next((out / "heads").glob("*/ridge-seed0/head.json")).read_text())["source"]["weights"]
    for part in (str(small_checkpoint), f"weights {weights}", "layers 2 after the final norm", "pooling mean"):
        assert part in facts["model"]
    assert "pixels native, at most 4,096 patches; precision float32, stored as float16" in facts["model"]
    text = (out / "results.md").read_text()
    assert "- probe: linear, 7 steps of 16, rate of 2 values from 0.01 to 0.1 for a batch of 256, sgd, cosine" in text
    assert re.search(r"- versions: python [\d.]+, .*torch ", text)
    assert re.search(r"- date: \d{4}-\d\d-\d\d", text)


def test_a_value_at_the_edge_is_marked_and_warned_of(probe, capsys):
    out = probe({"knn": {"k": [1, 3]}, "ridge": {"alphas": [1.0]}})
    (knn, ridge) = results_in(out)
    captured = capsys.readouterr()
    told = f"chose k {knn['chosen']:g} at the edge of its grid (1 to 3); a better value may lie beyond it"
    assert captured.err.count("at the edge") == 1
    assert told in captured.err
    assert re.search(
        rf"\| {100 * knn['metrics']['top1']:.1f}\* \| +{100 * ridge['metrics']['top1']:.1f} \|", captured.out
    )
    assert 0 <= knn["metrics"]["top1"] <= 1
    text = (out / "results.md").read_text()
    assert f"k {knn['chosen']:g}* |" in text
    assert "\\* chosen at the edge of its grid" in text


def test_edges():
    assert is_at_edge(1, [1, 2, 3])
    assert is_at_edge(3, [3, 1, 2])
    assert not is_at_edge(2, [1, 2, 3])
    assert not is_at_edge(1, [1])


def test_a_sweep_too(pets, small_checkpoint, tmp_path, capsys):
    command = ["sweep", str(pets), "--out", str(tmp_path), "--model", str(small_checkpoint), "--plots", "false"]
    assert main([*command, "--probes", "{knn: {k: [1, 3]}}", "--latex"]) == 0
    captured = capsys.readouterr()
    assert "warning: knn chose a value at the edge of its grid in layers 0, 1, 2" in captured.err
    facts = facts_in(tmp_path / "results.md")
    assert "layers 0, 1, 2 after the final norm; pooling mean; pixels native" in facts["model"]
    assert facts["mode"] == "all layers in one pass, each probed alone"
    assert captured.out.splitlines()[0] in (tmp_path / "results.md").read_text()
    best = json.loads((tmp_path / "sweep.json").read_text())["best_layer"]["knn"]
    assert facts["best layer on the validation set (test result)"].startswith(f"knn {best} (")
    assert all(one["at_edge"] for one in json.loads((tmp_path / "sweep.json").read_text())["results"])
    assert r"\begin{tabular}{lrrr}" in (tmp_path / "results.tex").read_text()


def test_latex(tmp_path):
    table = [["top1 %", "a_b"], ["x & y", "1.0 ± 0.2*"]]
    write_tables(tmp_path, [table], [("data", "50 % of it")], latex=True)
    lines = (tmp_path / "results.tex").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[1:3]] == ["% versions", "% date"]
    assert [lines[0], *lines[3:]] == [
        "% data: 50 % of it",
        "% * chosen at the edge of its grid, so that a better value may lie beyond it",
        "",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"top1 \% & a\_b \\",
        r"\midrule",
        r"x \& y & 1.0 $\pm$ 0.2* \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    write_tables(tmp_path, [[["a|b"], ["1"]]], [], latex=False)
    assert (tmp_path / "results.md").read_text().startswith("| a\\|b |\n")


@pytest.mark.parametrize(
    ("command", "file", "content", "maker"),
    [
        ("sweep", "results.json", "{}", "results.json"),
        ("probe", "sweep.json", "{}", "sweep.json"),
        ("probe", "run.json", '{"command": "segment train", "format": 2, "settings": {}}', "sail segment train"),
        ("sweep", "run.json", '{"command": "compare", "format": 2, "settings": {}}', "sail compare"),
    ],
)
def test_a_report_of_another_command_is_not_replaced(command, file, content, maker, tmp_path, capsys):
    (tmp_path / file).write_text(content)
    assert main([command, "digits", "--out", str(tmp_path)]) == 2
    assert f"holds the results of another command ({maker}); sail {command} needs another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_reports_may_stand_beside_features(tmp_path):
    (tmp_path / "run.json").write_text('{"command": "extract", "format": 2, "settings": {}}')
    for command, others in (("probe", "sweep.json"), ("sweep", "results.json")):
        check_reports(tmp_path, command, others)
