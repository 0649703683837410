"""The soak: a trial of each kind of trouble without a finding, and one whose result is not what it should be."""

from tools.soak.__main__ import Soak, main
from tools.soak.troubles import TROUBLES


def test_a_trial_of_each_kind_and_a_finding(tmp_path, monkeypatch):
    soak = Soak(tmp_path / "soak", seed=296)
    tried = [soak.run(number) for number in range(len(TROUBLES))]
    assert [trouble for trouble, _, _ in tried] == list(TROUBLES)
    assert not [finding for _, _, finding in tried if finding]
    assert [path.name for path in soak.folder.iterdir()] == ["inputs"], "trials without a finding leave nothing"
    for left in soak.ended.values():
        left[2]["000.png"] = "other features"
    _, _, finding = soak.run(len(TROUBLES))
    assert "results differ, such as 000.png" in finding
    assert (soak.folder / f"trial-{len(TROUBLES)}" / "out").is_dir(), "a finding keeps its folder"


def test_a_finding_ends_with_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Soak, "__init__", lambda self, folder, seed: None)
    monkeypatch.setattr(Soak, "run", lambda self, number: ("kill", "extract", "wrong" if number == 1 else None))
    assert main(["--trials", "1", "--out", str(tmp_path)]) == 0
    assert main(["--trials", "3", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FINDING: wrong" in printed
    assert "3 trials with seed 0 (3 kill): 1 findings" in printed
