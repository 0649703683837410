"""`sail segment refer` with the recorded checkpoint, whose weights are random."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixel_sail_golden import CHECKPOINT, IMAGE

from sail_cli import main
from sail_encoder.io.errors import UserError
from sail_encoder.pictures.mask_files import check_mask_folder, write_masks
from sail_encoder.pictures.masks import mask_color, overlay_masks

EXPRESSION = "the 1"
"""What the recorded checkpoint happens to answer with two masks."""


def refer(out, *options, expression=EXPRESSION, model=CHECKPOINT, image=IMAGE):
    arguments = [str(image), expression, "--out", str(out), "--model", str(model)]
    return main(["segment", "refer", *arguments, "--max-new-tokens", "24", *options])


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    out = tmp_path_factory.mktemp("refer") / "out"
    assert refer(out) == 0
    return out


def complaint(capsys, *arguments, **options):
    assert refer(*arguments, **options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sail: ")]
    assert len(lines) == 1
    return lines[0]


def test_files(answered, model, processor):
    answer = json.loads((answered / "answer.json").read_text())
    assert answer["answer"].count("[SEG]") == len(answer["masks"]) == 2
    assert {path.name for path in answered.iterdir()} == {"answer.json", "mask_0.png", "mask_1.png", "overlay.png"}
    photo = np.asarray(Image.open(IMAGE).convert("RGB"))
    assert answer["image_size"] == {"height": 60, "width": 90}
    masks = [np.asarray(Image.open(answered / mask["file"])) for mask in answer["masks"]]
    for mask, facts in zip(masks, answer["masks"], strict=True):
        assert mask.shape == photo.shape[:2]
        assert set(np.unique(mask)) == {0, 255}
        assert facts["pixels"] == (mask > 0).sum()
        x0, y0, x1, y1 = facts["box"]
        assert (mask[y0:y1, x0:x1] > 0).sum() == facts["pixels"]
    drawn = np.asarray(Image.open(answered / "overlay.png"))
    inside = np.any(np.stack(masks) > 0, axis=0)
    assert np.array_equal(drawn[~inside], photo[~inside])
    assert (drawn[inside] != photo[inside]).any(axis=1).mean() > 0.99


def test_output(tmp_path, capsys):
    assert refer(tmp_path / "out") == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.count("[SEG]") == 2
    assert last == f"wrote {tmp_path / 'out'}: 2 masks of {IMAGE}"


def test_an_earlier_answer_is_replaced_if_asked(answered, capsys):
    stale = answered / "mask_1.png"
    before = stale.read_bytes()
    assert "holds an earlier answer" in complaint(capsys, answered)
    Image.new("L", (3, 3)).save(stale)
    assert refer(answered, "--overwrite") == 0
    assert stale.read_bytes() == before


def test_masks_of_an_earlier_answer_that_had_more_are_removed(tmp_path):
    out = tmp_path / "out"
    assert refer(out) == 0
    assert refer(out, "--overwrite", "--max-new-tokens", "16") == 0
    assert {path.name for path in out.iterdir()} == {"answer.json", "mask_0.png", "overlay.png"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("steps", range(16))
def test_a_killed_answer_is_replaced(tmp_path, monkeypatch, steps):
    """No picture of an earlier answer lies beside another answer, and all that is there belongs to the command."""
    folder, rng = tmp_path / "out", np.random.default_rng(0)
    many, few = rng.random((3, 4, 5)) > 0.5, rng.random((1, 4, 5)) > 0.5
    picture = Image.new("RGB", (5, 4))
    write_masks(folder, many, {"answer": "many"}, picture)
    left = [steps]

    def until_killed(step):
        def take(*arguments, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return step(*arguments, **options)

        return take

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", until_killed(os.replace))
        patch.setattr(Path, "unlink", until_killed(Path.unlink))
        with suppress(Killed):
            write_masks(folder, few, {"answer": "few"}, picture, check_mask_folder(folder, overwrite=True))
            assert steps == 15
    names = ("answer.json", "mask_0.png", "overlay.png")
    answer = json.loads((folder / "answer.json").read_text())["answer"]
    own = {"many": many, "few": few}[answer]
    masks = {path.name: np.asarray(Image.open(path)) > 0 for path in folder.glob("mask_*.png")}
    assert masks.keys() <= {f"mask_{index}.png" for index in range(len(own))}
    assert all(np.array_equal(mask, own[int(name[5])]) for name, mask in masks.items())
    for path in folder.glob("overlay.png"):
        assert np.array_equal(np.asarray(Image.open(path)), overlay_masks(np.asarray(picture), own))
    with pytest.raises(UserError, match="holds an earlier answer"):
        check_mask_folder(folder, overwrite=False)
    write_masks(folder, few, {"answer": "few"}, picture, check_mask_folder(folder, overwrite=True))
    assert {path.name for path in folder.iterdir()} == set(names)


def test_an_answer_of_which_nothing_was_written_is_given_again(tmp_path):
    (tmp_path / ".answer.json").write_text('{"mas')
    earlier = check_mask_folder(tmp_path, overwrite=False)
    write_masks(tmp_path, np.ones((1, 4, 5), bool), {}, None, earlier)
    assert {path.name for path in tmp_path.iterdir()} == {"answer.json", "mask_0.png"}


def test_other_files_are_left_alone(tmp_path, capsys):
    photo = tmp_path / "mask_0.png"
    Image.new("RGB", (3, 3)).save(photo)
    before = photo.read_bytes()
    for options in ((), ("--overwrite",)):
        assert "mask_0.png, which is no answer of this command" in complaint(capsys, tmp_path, *options)
    assert photo.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mask_0.png"]


def test_hidden_files_of_others_are_left_alone(answered, capsys):
    (answered / ".notes").write_text("mine")
    assert ".notes, which is no answer of this command" in complaint(capsys, answered, "--overwrite")
    (answered / ".notes").unlink()


def test_an_answer_file_cannot_name_other_files(tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "keep.png"
    out.mkdir()
    other.write_text("mine")
    (out / "answer.json").write_text(json.dumps({"masks": [{"file": "../keep.png"}]}))
    assert refer(out, "--overwrite") == 0
    assert other.read_text() == "mine"


def test_regions(tmp_path):
    out = tmp_path / "out"
    options = ("--region", "1,2,30,40", "--max-new-tokens", "40")
    assert refer(out, *options, expression="the ball beside <Prompt0>") == 0
    assert json.loads((out / "answer.json").read_text())["region"] == "1,2,30,40"


def test_mistakes_are_one_line(tmp_path, capsys, plain_sail):
    out = tmp_path / "out"
    mask = tmp_path / "small.png"
    Image.new("L", (5, 5), 255).save(mask)
    named = "the ball beside <Prompt0>"
    assert "the expression is empty" in complaint(capsys, out, expression=" ")
    assert "no such file" in complaint(capsys, out, image="none.png")
    assert "5x5 pixels, but the image 90x60" in complaint(capsys, out, "--region", str(mask), expression=named)
    assert "is not understood" in complaint(capsys, out, "--region", "1,2,3", expression=named)
    assert "name it, as <Prompt0>" in complaint(capsys, out, "--region", "1,2,3,4")
    assert "there is no region" in complaint(capsys, out, expression=named)
    assert "a SAIL model gives no masks; a Pixel-SAIL does" in complaint(capsys, out, model=str(plain_sail))
    assert "no model 'nothing'" in complaint(capsys, out, model="nothing")
    assert "device 'tpu'" in complaint(capsys, out, "--device", "tpu")
    assert "max_new_tokens cannot be 0" in complaint(capsys, out, "--max-new-tokens", "0")
    assert not out.exists()


def test_after_a_full_disk_the_command_that_it_names_goes_on(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        assert "free some, then give the same command again with --overwrite" in complaint(capsys, out)
    assert [path.name for path in out.iterdir()] == ["answer.json"]
    assert refer(out, "--overwrite") == 0


def test_no_seg_in_the_answer(tmp_path, capsys):
    out = tmp_path / "out"
    line = complaint(capsys, out, "--max-new-tokens", "2")
    assert "the answer holds no [SEG], so there is no mask: 're8'" in line
    assert not out.exists()


def test_mistakes_come_before_heavy_imports(tmp_path, plain_sail):
    check = (
        "import sys; from sail_cli import main; status = main(sys.argv[1:]); "
        "assert status == 2; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    options = ["--out", str(tmp_path / "out"), "--model", str(plain_sail)]
    arguments = ["segment", "refer", str(IMAGE), "the circle", *options]
    subprocess.run([sys.executable, "-c", check, *arguments], check=True, capture_output=True)


def test_colors_of_masks():
    assert mask_color(0)[0] == 255
    assert len({mask_color(index) for index in range(20)}) == 20
    photo = np.full((2, 2, 3), 100, np.uint8)
    masks = np.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]]], bool)
    drawn = overlay_masks(photo, masks)
    assert (drawn[1] == 100).all()
    assert drawn[0, 0].tolist() != drawn[0, 1].tolist() != [100] * 3
