"""The smaller commands, on the embedded checkpoint."""

import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from evals.commands.demo import demo
from sail_cli import main
from sail_encoder.backbones.registry import describe
from sail_encoder.commands.doctor import doctor
from sail_encoder.commands.estimate import estimate
from sail_encoder.commands.info import info
from sail_encoder.images.decoding import read_image
from sail_encoder.io.files import format_bytes
from sail_encoder.store.reading import FeatureFolder


class SlowReader:
    """Reads images, each in so many seconds more."""

    def __init__(self, seconds):
        self.seconds, self.count = seconds, 0

    def __call__(self, image):
        time.sleep(self.seconds)
        self.count += 1
        return read_image(image)


def lines(capsys):
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_info_says_what_sail_tiny_is(capsys):
    assert info("sail-tiny") == 0
    out = capsys.readouterr().out
    for part in ("bfloat16", "14x14 pixels", "<vpatch>", "encoder, language head and mask head", "drawn scenes"):
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
    out = lines(capsys)
    assert "60% of the data sheet's 989" in out["time"]
    assert out["reading"].startswith("reading and decoding are not counted; name images")
    assert "in" not in out


def test_estimate_counts_reading_of_images_that_are_named(tmp_path, capsys, monkeypatch):
    for index in range(40):
        Image.fromarray(noise(140, 210, index)).save(tmp_path / f"{index}.png")
    command = ["estimate", str(tmp_path), "--device", "h100", "--resize", "native", "--readers", "2"]
    monkeypatch.setattr("sail_encoder.commands.estimate.read_image", slow := SlowReader(0.02))
    assert main(command) == 0
    out = lines(capsys)
    assert out["grid"].startswith("150 patches of 14 px per image, of 40 that were looked at")
    assert slow.count == 16, "a few are enough"
    seconds = float(out["reading"].split()[0])
    # At least 20 ms each, in two threads.
    assert 0.4 <= seconds < 4
    assert "in 2 threads" in out["reading"]
    assert "measured on 16" in out["reading"]
    assert out["in"].startswith(
        f"all      {out['reading'].split(' in ')[0]}: images are read while others are computed"
    )
    assert "reading is slower" in out["in"]
    assert float(out["speed"].split()[0]) == pytest.approx(40 / seconds, rel=0.3)
    assert main([*command, "--images", "4000"]) == 0
    assert float(lines(capsys)["reading"].split()[0]) > 20 * seconds / 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "448"], "--size 448 has no effect with images, which have sizes of their own"),
        (["--readers", "0"], "--readers cannot be 0"),
    ],
)
def test_estimate_refuses_what_nothing_would_read(options, message, tmp_path, capsys):
    Image.fromarray(noise(20, 20)).save(tmp_path / "0.png")
    assert main(["estimate", str(tmp_path), "--device", "h100", *options]) == 2
    assert message in capsys.readouterr().err
    assert main(["estimate", "--device", "h100", "--readers", "2"]) == 2
    assert "--readers 2 has no effect without images" in capsys.readouterr().err
    (tmp_path / "0.png").write_bytes(b"none")
    assert main(["estimate", str(tmp_path), "--device", "h100"]) == 2
    assert "none of the 1 images that were tried can be read, such as 0.png" in capsys.readouterr().err


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
    assert re.search(r"fail  timm +missing - pip install 'timm>=[0-9.]+'", out)
    assert "pytest" not in out, "what tests need is not what a user needs"


def test_doctor_knows_no_free_memory_on_macos(monkeypatch):
    from sail_encoder.commands import doctor as module

    names = {name: number for name, number in os.sysconf_names.items() if name != "SC_AVPHYS_PAGES"}
    monkeypatch.setattr("os.sysconf_names", names)
    [(_, _, words)] = module._check_memory()
    assert "free" not in words


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


@pytest.mark.parametrize(
    ("arguments", "old", "new"),
    [
        (["extract", "a.png", "--out", "o", "--dtype", "float32", "--dry-run"], "dtype", "store_dtype"),
        (["estimate", "--size", "224", "--dtype", "float32", "--device", "h100"], "dtype", "store_dtype"),
        (["convert", "sail-tiny", "o", "--dtype", "bfloat16"], "dtype", "precision"),
        (["pca", "--image", "a.png", "--out", "p.png"], "image", "images"),
        (["pca", "a.png", "--model", "raw/14", "--out", "p.png"], "model", "models"),
        (["pca", "a.png", "--layer", "-1", "--out", "p.png"], "layer", "layers"),
    ],
)
def test_options_of_0_1_0_work_and_say_their_new_name(arguments, old, new, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (28, 28), "red").save("a.png")
    assert main(arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert said.count(f"--{old} is now --{new}; the old spelling works in this release only") == 1
