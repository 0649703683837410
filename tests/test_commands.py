"""The smaller commands, on the embedded checkpoint."""

import json
import os
import shutil

import numpy as np
import torch
from helpers import noise
from PIL import Image

from sail_encoder.backbones.registry import describe
from sail_encoder.commands.demo import demo
from sail_encoder.commands.doctor import doctor
from sail_encoder.commands.estimate import estimate
from sail_encoder.commands.info import info
from sail_encoder.commands.visualize import heat_rgb, pca, pca_rgb, similarity
from sail_encoder.io.files import format_bytes
from sail_encoder.store.reading import FeatureFolder


def lines(capsys):
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_info_says_what_sail_tiny_is(capsys):
    assert info("sail-tiny") == 0
    out = capsys.readouterr().out
    for part in ("bfloat16", "14x14 pixels", "<vpatch>", "encoder and language head", "drawn scenes"):
        assert part in out


def test_info_of_other_models(capsys, small_checkpoint):
    assert info(str(small_checkpoint)) == 0
    assert "4096 tokens (text only)" in capsys.readouterr().out
    assert info("timm/vit_tiny_patch16_224") == 0
    assert "16x16 pixels" in capsys.readouterr().out
    assert info("timm/resnet18") == 0
    assert "2x2, 4x4, 8x8, 16x16, 32x32 pixels by layer" in capsys.readouterr().out


def test_flops_are_those_that_run(small_backbone, small_checkpoint):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    spec = describe(str(small_checkpoint))
    # Before version 2.15 PyTorch's counter counts nothing of flash attention on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        small_backbone.encode([noise(140, 280)], layers=1)
    norms = spec.flops(200, 2) - counter.get_total_flops()
    assert 0 <= norms < 0.02 * counter.get_total_flops()


def test_estimate(capsys):
    assert estimate("sail-tiny", images=1000, size="140x210", layers="last2", resize="native") == 0
    out = lines(capsys)
    assert out["grid"].startswith("10x15 = 150 patches")
    assert out["disk"].startswith(f"{1000 * 150 * 256 * 2 * 2 / 1e6:,.1f} MB")
    assert "measured on cpu" in out["time"]
    assert estimate("sail-tiny", device="H100", pool="mean") == 0
    assert "60% of the data sheet's 989" in capsys.readouterr().out


def test_sizes_for_people():
    sizes = {999: "999 bytes", 1000: "1.0 kB", 2.5e6: "2.5 MB", 7e9: "7.0 GB", 4e12: "4.0 TB", 5e15: "5,000.0 TB"}
    assert [format_bytes(count) for count in sizes] == list(sizes.values())


def test_estimated_size_is_the_size_on_disk(tmp_path, capsys, small_checkpoint):
    from sail_encoder.commands.extract import extract

    for index in range(5):
        Image.fromarray(noise(40 + index, 60)).save(tmp_path / f"{index}.png")
    extract([str(tmp_path)], str(tmp_path / "out"), model=str(small_checkpoint))
    files = list((tmp_path / "out" / "features").iterdir())
    values = sum(np.load(file).nbytes for file in files)
    assert f"{values / 1000:.1f} kB to write" in capsys.readouterr().err


def test_doctor_finds_this_machine_fit(capsys):
    assert doctor() == 0
    out = capsys.readouterr().out
    assert "sail-tiny" in out
    assert "TFLOP/s" in out
    assert not [line for line in out.splitlines() if line.startswith("fail")]


def test_doctor_says_what_to_do(capsys, monkeypatch):
    from sail_encoder.commands import doctor as module

    monkeypatch.setattr(module, "installed_version", lambda name: {"torch": "2.0.0", "timm": None}.get(name, "99"))
    monkeypatch.setattr(module, "CHECKS", (module._check_packages,))
    assert doctor() == 1
    out = capsys.readouterr().out
    assert "pip install 'torch>=2.11'" in out
    assert "missing - pip install 'timm>=1.0.22'" in out
    assert "fail  timm" in out
    assert "pytest" not in out, "what tests need is not what a user needs"


def test_doctor_knows_no_free_memory_on_macos(monkeypatch):
    from sail_encoder.commands import doctor as module

    names = {name: number for name, number in os.sysconf_names.items() if name != "SC_AVPHYS_PAGES"}
    monkeypatch.setattr("os.sysconf_names", names)
    [finding] = module._check_memory()
    assert "free" not in finding.value


def test_pca_picture(tmp_path, capsys):
    Image.fromarray(noise(60, 90)).save(tmp_path / "image.png")
    assert pca(str(tmp_path / "image.png"), str(tmp_path / "pca.png"), layer="-2") == 0
    with Image.open(tmp_path / "pca.png") as picture:
        assert picture.size == (2 * 90 + 8, 60)
    assert "5x7 patches" in capsys.readouterr().out
    assert pca(str(tmp_path / "image.png"), str(tmp_path / "new" / "folder" / "pca.jpg")) == 0
    assert (tmp_path / "new" / "folder" / "pca.jpg").exists()


def test_similarity_picture(tmp_path, capsys):
    pixels = np.full((56, 84, 3), 200, np.uint8)
    pixels[:, :42] = noise(56, 42)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    out = tmp_path / "new" / "similarity.png"
    assert similarity(str(tmp_path / "image.png"), "1,4", model="raw/14", out=str(out)) == 0
    assert "to 1.00" in capsys.readouterr().out
    drawn = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert drawn.shape == (56, 84 + 8 + 84, 3)
    assert (drawn[14, 56:71] == (255, 0, 0)).all()
    bright = drawn[:, 92:].sum(-1).reshape(4, 14, 6, 14).mean((1, 3))
    assert bright[:, 3:].min() > bright[:, :3].max()


def test_similarity_to_another_image(tmp_path):
    for name, size in (("a.png", (28, 42)), ("b.png", (56, 28))):
        Image.fromarray(noise(*size)).save(tmp_path / name)
    out = tmp_path / "out.png"
    assert similarity(str(tmp_path / "a.png"), "-1,-1", str(tmp_path / "b.png"), str(out), "raw/14") == 0
    assert Image.open(out).size == (42 + 8 + 28 + 8 + 28, 56)


def test_heat_runs_from_dark_to_bright():
    brightness = heat_rgb(np.linspace(-1, 1, 9)[None]).astype(int).sum(-1)[0]
    assert (np.diff(brightness) > 0).all()
    assert heat_rgb(np.ones((1, 2), np.float32)).max() < 10


def test_pca_separates_what_differs():
    torch.manual_seed(0)
    grid = torch.randn(4, 6, 16) * 0.01
    grid[:, 3:] += torch.randn(16)
    colors = pca_rgb(grid).astype(int)
    assert colors.shape == (4, 6, 3)
    assert abs(colors[:, :3, 0].mean() - colors[:, 3:, 0].mean()) > 200
    assert pca_rgb(torch.zeros(1, 1, 8)).shape == (1, 1, 3)
    assert pca_rgb(torch.randn(1, 2, 8)).shape == (1, 2, 3)


def test_embedded_checkpoint_is_small_and_complete():
    from sail_encoder.io.hub import TINY_FOLDER

    assert sum(file.stat().st_size for file in TINY_FOLDER.iterdir() if file.is_file()) < 16e6
    summary = json.loads((TINY_FOLDER / "training.json").read_text())
    assert {"about", "steps", "images", "loss", "accuracy"} <= summary.keys()


def test_demo_may_be_given_again(tmp_path, capsys):
    """Also with features of an earlier version, whose settings or weights differ."""
    out = tmp_path / "demo"
    assert demo(str(out)) == 0
    run = json.loads((out / "features" / "run.json").read_text())
    run["settings"]["weights"] = "others"
    (out / "features" / "run.json").write_text(json.dumps(run))
    assert demo(str(out)) == 0
    features = FeatureFolder(out / "features")
    assert sorted(entry.path for entry in features.entries) == ["china.png", "flower.png"]
    assert sorted(path.name for path in out.glob("*.png")) == ["china_pca.png", "flower_pca.png"]


def test_info_of_a_hub_name_downloads_no_weights(monkeypatch, capsys, small_checkpoint, tmp_path):
    def download(name, revision=None, allow_patterns=()):
        assert not any("model*" in pattern for pattern in allow_patterns)
        for path in small_checkpoint.glob("*.json"):
            shutil.copy(path, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert info("somebody/model") == 0
    out = capsys.readouterr().out
    assert "settings alone; the first command that needs weights downloads them" in out
    assert "14x14 pixels" in out
