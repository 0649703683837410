"""`sail pca`, `sail similarity` and `sail match`: pictures of what the features are, and the features themselves."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image
from sklearn.datasets import load_sample_images

from sail_cli import main
from sail_encoder import load_backbone
from sail_encoder.commands.extract import extract
from sail_encoder.commands.match import match
from sail_encoder.commands.pca import pca
from sail_encoder.commands.similarity import similarity
from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.pictures.colors import MARKS, ramp

SIDE = 14


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two images of whole patches, in a folder and as files of the working folder."""
    (tmp_path / "photos").mkdir()
    for name, size in (("a.png", (56, 84)), ("b.png", (70, 42))):
        for folder in (tmp_path, tmp_path / "photos"):
            Image.fromarray(noise(*size)).save(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def encodings(monkeypatch):
    """What each backbone was asked to encode: its name, the blocks it has loaded, and how many images."""
    from sail_encoder.backbones.base import VisionBackbone

    seen = []
    encode = VisionBackbone.encode

    def recorded(self, images, *arguments, **options):
        seen.append((self.name, self.num_layers, len(images)))
        return encode(self, images, *arguments, **options)

    monkeypatch.setattr(VisionBackbone, "encode", recorded)
    return seen


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def texts(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_one_sheet_of_images_layers_and_models(photos, encodings, capsys):
    arguments = ["a.png", "b.png", "a.png", "--layers", "0,2", "--models", "sail-tiny,raw/14", "--out", "pca.svg"]
    with pytest.raises(UserError, match="layer 2 does not exist"):
        pca(["a.png"], models="sail-tiny,raw/14", layers="0,2")
    assert main(["pca", *[word.replace("0,2", "-1") for word in arguments]]) == 0
    assert encodings == [("sail-tiny", 6, 2), ("raw/14", 1, 2)], "what stands twice is encoded once"
    words = texts(photos / "pca.svg")
    assert words.count("a.png") == 2
    assert words.count("grid 4x6") == 4
    assert words.count("grid 5x3") == 2
    assert {"sail-tiny", "84x56"} <= set(words)
    assert len([word for word in words if re.fullmatch(r"layer 5, \d+% of variance", word)]) == 1
    assert "2 x a.png, b.png" in capsys.readouterr().out


def test_the_same_image_twice_is_drawn_the_same(photos):
    pca(["a.png", "b.png", "photos/a.png"], layers="0,3", out="pca.npz")
    scores = np.load("pca.npz")
    for layer in (0, 3):
        first, other = scores[f"0/a.png/sail-tiny/layer{layer}"], scores[f"2/a.png/sail-tiny/layer{layer}"]
        assert first.shape == (4, 6, 3)
        np.testing.assert_allclose(first, other, atol=1e-4)
    pca(["a.png", "a.png"], out="twice.png", dpi=72)
    page = pixels("twice.png")
    left = 8 + 150 + 6
    rows = [top for top in range(len(page) - 100) if (page[top : top + 100, left] != 255).any(-1).all()]
    starts = [top for top in rows if top - 1 not in rows]
    assert len(starts) == 2
    first, second = (page[top : top + 100, left : left + 150] for top in starts)
    np.testing.assert_array_equal(first, second)
    assert first.std() > 20


def test_no_more_is_loaded_than_the_deepest_layer(photos, encodings):
    pca(["a.png"], layers="1,0", out="x.npy")
    similarity("a.png", ["0,0"], layer="2", out="x.npy")
    match("a.png", "b.png", layer="3", out="x.npy")
    assert encodings == [("sail-tiny", 2, 1), ("sail-tiny", 3, 1), ("sail-tiny", 4, 2)]


def test_the_scores_are_those_of_the_features(photos):
    pca(["a.png"], layers="1", out="pca.npy")
    scores = np.load("pca.npy")
    assert scores.shape == (1, 1, 4, 6, 3)
    features = load_backbone("sail-tiny").encode(["a.png"], layers=1)[0].grid.numpy().reshape(24, -1)
    centred = features - features.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:3]
    spread = np.sqrt(np.square(centred).sum(1).mean())
    np.testing.assert_allclose(np.abs(scores.reshape(24, 3)), np.abs(centred @ directions.T / spread), atol=2e-3)


def test_spellings_of_before(photos, capsys):
    assert main(["pca", "--image", "a.png", "--model", "raw/14", "--layer", "-1", "--out", "new/folder/x.jpg"]) == 0
    *renamed, last = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in renamed] == [
        f"--{old} is now --{old}s" for old in ("image", "model", "layer")
    ]
    assert last == "loading raw/14 ..."
    with Image.open("new/folder/x.jpg") as picture:
        assert picture.format == "JPEG"


def test_a_folder_is_a_contact_sheet(photos, capsys):
    for index in range(6):
        Image.fromarray(noise(28 + index, 42)).save(photos / "photos" / f"{index}.png")
    assert pca(["photos"], models="raw/14", out="sheet.svg") == 0
    words = texts(photos / "sheet.svg")
    assert words.count("raw pixels, native") == 2, "eight images stand two by two"
    assert {"a.png", "b.png", *(f"{index}.png" for index in range(6))} <= set(words)
    assert pca(["photos"], models="raw/14", out="sheet.svg", limit=2) == 0
    assert texts(photos / "sheet.svg").count("0.png") == 1
    assert "the first of 8; --limit takes more" in capsys.readouterr().out


def test_foreground(photos):
    scene = np.full((84, 112, 3), 90, np.uint8)
    scene[28:56, 42:84] = noise(28, 42) // 2 + 128
    Image.fromarray(scene).save("scene.png")
    assert pca(["scene.png"], models="raw/14", foreground="pc1", out="front.png", dpi=72) == 0
    page = pixels("front.png")
    panel = page[-(112 + 8 + 9) : -(8 + 9), 8 + 150 + 6 : 8 + 150 + 6 + 150]
    gray = (panel == panel[:, :, :1]).all(-1)
    assert gray[:30].all()
    assert gray[:, :45].all()
    assert gray[45:70, 60:105].mean() < 0.3
    with pytest.raises(UserError, match="--foreground pc2 is not understood"):
        pca(["scene.png"], foreground="pc2")


def test_stored_features(photos, capsys):
    extract(["photos"], "run", layers="1,4")
    capsys.readouterr()
    assert pca(features="run", out="stored.npz") == 0
    assert pca(["photos/a.png", "photos/b.png"], layers="1,4", out="fresh.npz") == 0
    stored, fresh = np.load("stored.npz"), np.load("fresh.npz")
    assert len(stored) == 4
    for name in stored:
        np.testing.assert_allclose(np.abs(stored[name]), np.abs(fresh[name]), atol=0.05)
    Image.fromarray(noise(9, 9)).save(photos / "photos" / "b.png")
    assert pca(["b.png"], features="run", layers="4", out="stored.svg") == 0
    assert {"b.png", "grid 5x3"} <= set(texts(photos / "stored.svg"))
    assert "b.png is not the image that was extracted; its place stays white" in capsys.readouterr().err


def test_stored_features_that_cannot_be_drawn(photos):
    extract(["photos"], "run", layers="1,4")
    extract(["photos"], "pooled", pool="mean")
    for options, message in (
        ({"features": "run", "layers": "2"}, "--layers 2: run holds layers 1, 4"),
        ({"features": "run", "layers": "last1"}, "--layers last1: run holds layers 1, 4"),
        ({"features": "run", "models": "raw/14"}, "--models has no effect with --features"),
        ({"features": "run", "images": ["c.png"]}, "run has no features of c.png; there is, for one, a.png"),
        ({"features": "pooled"}, "pooled holds one vector per image, and no grids"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            pca(out="x.png", **options)
    with pytest.raises(StoreError, match=r"photos has no run\.json"):
        pca(features="photos")


@pytest.mark.parametrize(
    ("point", "patch"), [("0,0", (0, 0)), ("83,55", (3, 5)), ("14,13.9", (0, 1)), ("29,30", (2, 2))]
)
def test_the_clicked_patch_is_like_itself_and_covers_the_point(photos, point, patch):
    assert similarity("a.png", at_pixel=[point], out="x.npy") == 0
    scores = np.load("x.npy")
    assert scores.shape == (1, 1, 4, 6)
    assert scores[0, 0][patch] == pytest.approx(1, abs=1e-5)
    assert (scores[0, 0] > 0.9999).sum() == 1
    features = load_backbone("sail-tiny").encode(["a.png"])[0]
    left, top, right, bottom = features.patch_box(*patch)
    x, y = map(float, point.split(","))
    assert left <= x < right
    assert top <= y < bottom


def test_several_patches_and_other_images(photos, capsys):
    arguments = ["a.png", "--at", "1,4 -1, 0", "--at", "0,0", "--at-pixel", "80,3", "--to", "photos", "--to", "b.png"]
    assert main(["similarity", *arguments, "--model", "raw/14", "--out", "x.npz"]) == 0
    scores = np.load("x.npz")
    queries = ["1,4", "3,0", "0,0", "0,5"]
    images = ["0/a.png", "1/a.png", "2/b.png", "3/b.png"]
    assert list(scores) == [f"{image}/{query}" for image in images for query in queries]
    np.testing.assert_allclose(scores["0/a.png/3,0"], scores["1/a.png/3,0"], atol=1e-6)
    assert "similarity to patch 1,4 3,0 0,0 0,5 of a.png" in capsys.readouterr().out
    assert main(["similarity", *arguments, "--model", "raw/14", "--out", "x.svg"]) == 0
    words = texts(photos / "x.svg")
    assert "best match 1,4: 1.00" in words
    assert {"to patch 1,4", "raw pixels, native, layer 0", "b.png"} <= set(words)


def test_the_heat_is_on_the_scale_and_the_query_outlined(photos):
    """Where a photograph is plain, the color of a patch is to be found on the bar, at its value."""
    scene = np.full((56, 84, 3), 200, np.uint8)
    scene[:, :42] = (60, 90, 140)
    scene[:28, :14] = (250, 10, 20)
    Image.fromarray(scene).save("scene.png")
    assert similarity("scene.png", ["3,5"], model="raw/14", out="heat.png", dpi=72) == 0
    page = pixels("heat.png")
    left = 8 + 200 + 6
    panel = page[20:, left : left + 200]
    colors = {tuple(color) for color in ramp().tolist()}
    assert tuple(ramp()[-1].tolist()) in {tuple(color) for color in panel[30:60, 150:190].reshape(-1, 3).tolist()}
    assert tuple(panel[60, 5].tolist()) in colors
    for x in (8, left):
        framed = np.argwhere((page[:, x : x + 200] == MARKS[0]).all(-1))
        assert framed[:, 1].min() >= 200 * 5 / 6 - 3
        assert framed.size


def test_interpolation_is_on_request(photos):
    similarity("a.png", ["0,0"], model="raw/14", out="sharp.png")
    similarity("a.png", ["0,0"], model="raw/14", out="smooth.png", smooth=True)
    sharp, smooth = pixels("sharp.png"), pixels("smooth.png")
    assert sharp.shape == smooth.shape
    assert (sharp != smooth).any(-1).mean() > 0.2


@pytest.mark.parametrize("model", ["raw/14", "sail-tiny"])
def test_a_shifted_copy_is_matched_with_its_shift(photos, capsys, model):
    """By raw patches everywhere; the model, which sees also what is around, in most places."""
    scene = noise(12 * SIDE, 14 * SIDE)
    Image.fromarray(scene[: 10 * SIDE, : 12 * SIDE]).save("first.png")
    Image.fromarray(scene[SIDE : 11 * SIDE, 2 * SIDE :]).save("second.png")
    assert match("first.png", "second.png", strongest=1000, model=model, layer="0", out="x.npy") == 0
    pairs = np.load("x.npy")
    assert pairs.shape[1] == 5
    shifts = (pairs[:, :2] - pairs[:, 2:4]).astype(int)
    found = (shifts == (1, 2)).all(1)
    assert found.sum() >= (9 * 10 if model == "raw/14" else 60)
    assert (np.diff(pairs[:, 4]) <= 0).all()
    if model == "raw/14":
        assert found[:90].all()
        np.testing.assert_allclose(pairs[:90, 4], 1, atol=1e-5)
    capsys.readouterr()
    assert match("first.png", "second.png", strongest=7, model=model, layer="0", out="x.svg") == 0
    assert re.search(r"the 7 strongest of \d+ mutual matches, similarity", capsys.readouterr().out)
    assert {"first.png", "second.png", "grid 10x12"} <= set(texts(photos / "x.svg"))


def test_files_are_replaced_only_when_complete(photos, monkeypatch):
    (photos / "x.png").write_bytes(b"earlier")
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StoreError, match="No space left on device"):
        match("a.png", "b.png", model="raw/14", out="x.png")
    assert (photos / "x.png").read_bytes() == b"earlier"
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.png", "photos", "x.png"]


def test_commands_in_the_documentation_draw_what_is_beside_them(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    page = (root / "docs" / "pictures.md").read_text()
    (tmp_path / "demo" / "photographs").mkdir(parents=True)
    for image, name in zip(load_sample_images().images, ("china", "flower"), strict=True):
        Image.fromarray(image).save(tmp_path / "demo" / "photographs" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "<pictures.md>", "exec"), {})
    commands = re.findall(r"^sail (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)) == 0
        shown = root / "docs" / "pictures" / command.split()[-1]
        assert shown.stat().st_size <= 150_000
        assert pixels(command.split()[-1]).shape == pixels(shown).shape
