"""Published models, described without their files."""

import pytest

from sail_encoder.backbones.published import SAIL_VL, language_parameters, published_name
from sail_encoder.backbones.registry import describe
from sail_encoder.commands.estimate import estimate
from sail_encoder.commands.info import info

ORGANISATION = "BytedanceDouyinContent"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def download(*arguments, **options):
        pytest.fail("something is downloaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("SAIL-VL-1.6-8B", 16_665_065_472 // 2),  # total_size of its index, bfloat16
        ("SAIL-VL2-2B", 5_461_130_240 // 2),  # likewise
        ("SAIL-VL-2B", 2_089_762_304),  # with a vocabulary of 151,936
    ],
)
def test_whole_models_have_the_published_size(name, parameters):
    _, language_model = SAIL_VL[published_name(name)]
    assert describe(name, project=True).parameters() + language_parameters(language_model) == parameters


def test_names_are_understood_as_the_model_cards_write_them():
    assert published_name("SAIL-VL-1.5-2B") == f"{ORGANISATION}/SAIL-VL-1d5-2B"
    assert published_name(f"{ORGANISATION}/SAIL-VL-1d5-2B") == f"{ORGANISATION}/SAIL-VL-1d5-2B"
    assert published_name("sail-tiny") is None
    assert published_name("SAIL-VL-2B", revision="main") is None


def test_a_folder_of_that_name_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SAIL-VL-2B").mkdir()
    assert published_name("SAIL-VL-2B") is None


@pytest.mark.parametrize("name", ["ByteDance-Seed/SAIL-7B", *SAIL_VL])
def test_info_and_estimate_work_offline(name, capsys):
    assert info(name) == 0
    shown = capsys.readouterr().out
    assert f"https://huggingface.co/{name}" in shown
    assert f"{describe(name).parameters():,}" in shown
    assert ("whole model" in shown) == (name in SAIL_VL and SAIL_VL[name][1] is not None)
    assert estimate(name, images=1000, device="h100") == 0


def test_info_of_a_folder_of_sail_vl(capsys):
    assert info("tests/golden/sail_vl2/checkpoint") == 0
    shown = capsys.readouterr().out
    assert "tower, projector and language model" in shown
    assert "sail_vl" in shown
