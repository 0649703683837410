"""Model cards that `sail convert` writes: their code runs on the folder as it stands, and nothing is overwritten."""

import contextlib
import re
import shutil

import pytest
import torch
from helpers import GOLDEN as SAIL_GOLDEN
from helpers import GOLDEN_IDS, add_code, noise
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText

from sail_cli import main
from sail_encoder import CheckpointError, load_backbone
from sail_encoder.backbones import published
from sail_encoder.commands import cards
from sail_encoder.commands.convert import convert
from sail_encoder.commands.info import info

GOLDEN = SAIL_GOLDEN.parent
SOURCES = {
    "sail": "sail-tiny",
    "sail_vl2": str(GOLDEN / "sail_vl2" / "checkpoint"),
    "internvit": str(GOLDEN / "sail_vl_internvit" / "checkpoint"),
    "tower": str(GOLDEN / "sailvit" / "checkpoint"),
    "pixel": str(GOLDEN / "pixel_sail" / "checkpoint"),
}


def code_of(folder):
    [block] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return block


def run_card(folder, monkeypatch):
    """Runs what the card shows, beside the folder, on an image of that name."""
    monkeypatch.chdir(folder.parent)
    Image.fromarray(noise(60, 90)).save("image.png")
    names = {}
    exec(compile(code_of(folder), "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("kind", ["sail", "sail_vl2", "internvit", "pixel"])
def test_the_code_of_a_card_answers(kind, tmp_path, monkeypatch):
    assert convert(SOURCES[kind], str(tmp_path / "new")) == 0
    names = run_card(tmp_path / "new", monkeypatch)
    assert isinstance(names["answer"], str)
    assert len(names["output"][0]) > names["inputs"]["input_ids"].shape[1]


def test_the_code_of_an_encoder_and_of_a_tower_gives_features(tmp_path, monkeypatch):
    convert("sail-tiny", str(tmp_path / "encoder"), encoder_only=True, precision="float32")
    patches = run_card(tmp_path / "encoder", monkeypatch)["patches"]
    [expected] = load_backbone("sail-tiny").encode([noise(60, 90)])
    torch.testing.assert_close(patches.flatten(0, -2), expected.grid.flatten(0, 1), rtol=1e-4, atol=1e-4)
    convert(SOURCES["tower"], str(tmp_path / "tower"))
    grid = run_card(tmp_path / "tower", monkeypatch)["grid"]
    [expected] = load_backbone(SOURCES["tower"]).encode([noise(60, 90)])
    torch.testing.assert_close(grid, expected.grid)


def test_relatives_are_the_same_after_conversion(tmp_path):
    for kind in ("sail_vl2", "internvit", "tower"):
        convert(SOURCES[kind], str(tmp_path / kind))
        before, after = load_backbone(SOURCES[kind]), load_backbone(str(tmp_path / kind))
        assert after.fingerprint(after.num_layers - 1) == before.fingerprint(before.num_layers - 1)
    assert AutoModel.from_pretrained(tmp_path / "tower").config.model_type == "sailvit"
    convert(SOURCES["tower"], str(tmp_path / "half"), precision="bfloat16")
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["sail", "sail_vl2", "pixel"])
def test_code_of_a_checkpoint_is_not_run_and_nobody_is_asked(kind, tmp_path, monkeypatch):
    """Nor by what a conversion has left, when that is converted again."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked whether to run code"))
    convert(SOURCES[kind], str(tmp_path / "new"))
    add_code(tmp_path / "new", tmp_path / "ran")
    with contextlib.suppress(CheckpointError):
        convert(str(tmp_path / "new"), str(tmp_path / "again"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["sail_vl2", "pixel"])
def test_a_damaged_tokenizer_is_told(kind, tmp_path):
    convert(SOURCES[kind], str(tmp_path / "new"))
    (tmp_path / "new" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer"):
        convert(str(tmp_path / "new"), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_checkpoint_without_tokenizer_shows_what_it_can(tmp_path, monkeypatch):
    convert(str(GOLDEN / "sail_vl" / "checkpoint"), str(tmp_path / "new"), image_token_id=300)
    assert run_card(tmp_path / "new", monkeypatch)["grid"].ndim == 3
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    assert model.config.image_token_id == 300
    convert(str(SAIL_GOLDEN / "checkpoint"), str(tmp_path / "sail"), **GOLDEN_IDS)
    assert "AutoImageProcessor" in code_of(tmp_path / "sail")


def test_source_and_licence_are_those_of_the_source(tmp_path):
    source = shutil.copytree(SOURCES["tower"], tmp_path / "somebodys-tower")
    convert(str(source), str(tmp_path / "unknown"))
    text = (tmp_path / "unknown" / "README.md").read_text()
    assert "Source: `somebodys-tower`" in text
    assert "Licence of the weights: that of the source; see the card of `somebodys-tower`." in text
    assert "license:" not in text
    assert str(tmp_path) not in text
    (source / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# A tower\n")
    convert(str(source), str(tmp_path / "known"))
    text = (tmp_path / "known" / "README.md").read_text()
    assert "\nlicense: mit\n" in text.split("---")[1]
    assert "Licence of the weights: mit, as the source says." in text


def test_a_published_name_is_linked(tmp_path):
    cards.write_card(cards.SAIL, "ByteDance-Seed/SAIL-7B", tmp_path, tmp_path, "sail-7b")
    text = (tmp_path / "README.md").read_text()
    assert "base_model: ByteDance-Seed/SAIL-7B" in text
    assert "[ByteDance-Seed/SAIL-7B](https://huggingface.co/ByteDance-Seed/SAIL-7B)" in text
    assert "license: apache-2.0" in text
    compile(code_of(tmp_path), "README.md", "exec")


def test_a_card_of_somebody_else_stays(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert main(["convert", "sail-tiny", str(tmp_path)]) == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    cards.write_card(cards.SAIL, "sail-tiny", tmp_path, tmp_path, "x")
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder_only"], "--encoder_only has no effect on"),
        (["--vision_start_token_id", "3"], "--vision_start_token_id has no effect on"),
    ],
)
def test_options_of_sail_are_refused_for_relatives(options, message, tmp_path, capsys):
    assert main(["convert", SOURCES["tower"], str(tmp_path / "new"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*published.SAIL, *published.SAIL_VL, "SAIL-VL-1.6-8B"])
def test_every_published_model_is_described_without_a_network(name, monkeypatch, capsys):
    def offline(*arguments, **options):
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    assert info(name) == 0
    out = capsys.readouterr().out
    for part in ("published as  ", "https://huggingface.co/", "licence", "encoder parameters", "in bfloat16"):
        assert part in out
    assert ("Apache-2.0" in out) == (name in published.LICENCES)
