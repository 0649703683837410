"""mmsegmentation with our backbones: its registry, its Runner, and the same scores as ours."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import COLORS, write_data
from helpers import noise
from PIL import Image

from evals.segmentation.option_checks import inference_of
from heads.contract import HeadError
from heads.dense.registry import load_dense_head
from sail_cli import main
from sail_encoder import load_backbone
from sail_encoder.io.errors import UserError

pytest.importorskip("mmseg")
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from heads.mmseg import NativeHead, SailBackbone
from heads.mmseg.decode_head import export_head

CONFIGS = Path("configs/mmseg")
CLASSES = [f"class {index}" for index in range(len(COLORS))]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmseg")


@pytest.fixture(scope="module")
def pixels():
    return torch.stack([torch.from_numpy(noise(28, 42, seed)).permute(2, 0, 1).float() for seed in (0, 1)])


def test_maps_are_those_of_encode(small_checkpoint, small_backbone, pixels):
    backbone = MODELS.build({"type": "SailBackbone", "model": str(small_checkpoint), "out_indices": [-1, 0]})
    maps = backbone(pixels)
    features = small_backbone.encode([image.byte() for image in pixels], layers=[0, 2])
    for index, one in enumerate(features):
        torch.testing.assert_close(maps[0][index].permute(1, 2, 0), one.layers[2])
        torch.testing.assert_close(maps[1][index].permute(1, 2, 0), one.layers[0])


def test_it_is_frozen_and_no_part_of_checkpoints(small_checkpoint, pixels):
    backbone = SailBackbone(str(small_checkpoint), [1])
    assert not backbone(pixels)[0].requires_grad
    assert list(backbone.parameters()) == []
    assert backbone.state_dict() == {}
    assert backbone.load(torch.device("cpu")).num_layers == 2


@pytest.mark.parametrize("model", ["raw/14", "timm/vit_tiny_patch16_224", "sail-tiny"])
def test_any_backbone_on_images_that_patches_do_not_tile(model, monkeypatch):
    monkeypatch.setattr(
        "heads.mmseg.backbone.load_backbone",
        lambda name, device, dtype, layers: load_backbone(name, device, dtype, layers, pretrained=False),
    )
    (features,) = SailBackbone(model)(torch.rand(2, 3, 30, 65) * 255)
    p = SailBackbone(model).patch_size
    assert features.shape[2:] == (-(-30 // p), -(-65 // p))


def test_pixels_that_are_normalised_already_are_refused(small_checkpoint, pixels):
    with pytest.raises(UserError, match="remove mean and std from the data_preprocessor"):
        SailBackbone(str(small_checkpoint))(pixels / 255 - 0.5)


def test_mistakes_in_a_config(small_checkpoint):
    with pytest.raises(UserError, match="no model 'sail-tny'"):
        SailBackbone("sail-tny")
    with pytest.raises(UserError, match="layer"):
        SailBackbone(str(small_checkpoint), [3])
    with pytest.raises(HeadError, match="not trained by gradients"):
        NativeHead("knn", [64], 4)


def test_without_mmsegmentation_one_sentence_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("heads.mmseg")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmseg", None)
    monkeypatch.setitem(sys.modules, "mmseg.registry", None)
    with pytest.raises(ImportError, match=r"pip install onedl-mmcv") as caught:
        __import__("heads.mmseg")
    assert "\n" not in str(caught.value)


def shrink(config, checkpoint):
    """The same configuration with a small backbone and narrow heads."""
    layers = config.model.backbone.out_indices
    config.model.backbone.update(model=str(checkpoint), out_indices=[-1] if len(layers) == 1 else [0, 1, 2, 2])
    config.model.decode_head.in_channels = [64] * len(layers)
    if "neck" in config.model:
        config.model.neck.in_channels = [64] * 4
        config.model.decode_head.channels = 8
        config.model.auxiliary_head.update(in_channels=64, channels=8)
    return config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_is_built_and_trains_a_step(path, small_checkpoint):
    config = shrink(Config.fromfile(path), small_checkpoint)
    size = config.crop_size
    assert [side % 14 for side in size] == [0, 0]
    assert tuple(config.model.test_cfg.crop_size) == tuple(config.model.data_preprocessor.size) == tuple(size)
    config.model.data_preprocessor.size = (42, 56)
    config.model.test_cfg.update(crop_size=(42, 56), stride=(28, 28))
    model = revert_sync_batchnorm(MODELS.build(config.model)).train()
    labels = torch.randint(0, config.model.decode_head.num_classes, (1, 40, 56))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": (40, 56)}) for _ in range(2)]
    images = [torch.from_numpy(noise(40, 56, seed)).permute(2, 0, 1) for seed in (0, 1)]
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    for scheduler in config.param_scheduler:
        PARAM_SCHEDULERS.build({**scheduler, "optimizer": wrapper.optimizer})
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = model.train_step({"inputs": images, "data_samples": samples}, wrapper)
    assert losses["loss"].isfinite()
    changed = [name for name, value in model.named_parameters() if not torch.equal(before[name], value)]
    assert any(name.startswith("decode_head") for name in changed)
    assert config.train_cfg.max_iters == config.param_scheduler[-1].end


def write_official(root, name, ids):
    """An image of each split, with a mask of these ids, where ADE20K and Cityscapes have theirs."""
    for ade, city in (("training", "train"), ("validation", "val")):
        places = {
            "ade20k": (f"images/{ade}/a.jpg", f"annotations/{ade}/a.png"),
            "cityscapes": (f"leftImg8bit/{city}/x/a_leftImg8bit.png", f"gtFine/{city}/x/a_gtFine_labelTrainIds.png"),
        }
        for place, values in zip(places[name], (noise(80, 120), np.resize(ids, (80, 120))), strict=True):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(values, np.uint8)).save(root / place)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_data_of_every_config_is_read(path, tmp_path):
    """0 does not count in ADE20K, whose classes start at 1; 255 does not count in Cityscapes."""
    config = Config.fromfile(path)
    name = path.stem.partition("_")[2]
    classes, ids, labels = (150, [0, 1, 150], [255, 0, 149]) if name == "ade20k" else (19, [0, 18, 255], [0, 18, 255])
    write_official(tmp_path, name, ids)
    for split in ("train", "val", "test"):
        dataset = DATASETS.build({**config[f"{split}_dataloader"].dataset, "data_root": str(tmp_path)})
        assert len(dataset) == 1
        assert len(dataset.metainfo["classes"]) == classes == config.model.decode_head.num_classes
        sample = dataset[0]
        found = sample["data_samples"].gt_sem_seg.data
        assert set(found.unique().tolist()) == set(labels)
        if split == "train":
            assert sample["inputs"].shape[1:] == found.shape[1:]
            assert all(0 < side <= most for side, most in zip(found.shape[1:], config.crop_size, strict=True))
        else:
            assert found.shape[1:] == (80, 120), "scores are taken at the size of the mask"


def small_run(data, checkpoint, work_dir):
    """The configuration of a run of 20 iterations on a small data set."""
    config = shrink(Config.fromfile(CONFIGS / "linear_ade20k.py"), checkpoint)
    load, pack = {"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}
    pipelines = {
        "train": [load, {"type": "LoadAnnotations"}, {"type": "RandomCrop", "crop_size": (42, 42)}, pack],
        "val": [load, {"type": "LoadAnnotations"}, pack],
    }
    for split, pipeline in pipelines.items():
        dataset = {
            "type": "BaseSegDataset",
            "metainfo": {"classes": CLASSES, "palette": COLORS.tolist()},
            "data_root": str(data),
            "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"masks/{split}"},
            "img_suffix": ".png",
            "pipeline": pipeline,
        }
        loader = config[f"{split}_dataloader"]
        loader.pop("dataset")
        loader.update(dataset=dataset, num_workers=0, persistent_workers=False)
    config.test_dataloader = config.val_dataloader
    config.model.data_preprocessor.size = (42, 42)
    config.model.decode_head.num_classes = len(CLASSES)
    config.model.test_cfg = {"mode": "whole"}
    config.train_cfg.update(max_iters=20, val_interval=20)
    config.default_hooks.checkpoint.interval = 5
    config.default_hooks.logger.interval = 5
    config.merge_from_dict({"work_dir": str(work_dir), "log_level": "ERROR", "env_cfg.cudnn_benchmark": False})
    return config


TRAIN = "import sys; from mmengine.config import Config; from mmengine.runner import Runner; "
TRAIN += "Runner.from_cfg(Config.fromfile(sys.argv[1])).train()"


def test_the_runner_trains_is_killed_resumes_validates_and_tests(small_checkpoint, tmp_path):
    data = write_data(tmp_path / "data", train=8, val=4, sides=(56, 100), multiple=14)
    work_dir = tmp_path / "run"
    config = small_run(data, small_checkpoint, work_dir)
    config.dump(tmp_path / "config.py")
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(tmp_path / "config.py")], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (work_dir / "last_checkpoint").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    begun = int((work_dir / "last_checkpoint").read_text().rpartition("iter_")[2].removesuffix(".pth"))
    assert 5 <= begun < 20

    config.resume = True
    runner = Runner.from_cfg(config)
    model = runner.train()
    assert runner.iter == 20
    assert "iter_20.pth" in (work_dir / "last_checkpoint").read_text()
    theirs = runner.test()
    assert 0 < theirs["mIoU"] <= 100

    load_checkpoint(model, str(work_dir / "iter_20.pth"))
    classes = runner.train_dataloader.dataset.metainfo["classes"]
    export_head(model.cpu().eval(), classes, tmp_path / "head", resize="native")
    (tmp_path / "data/classes.txt").write_text("\n".join(CLASSES))
    arguments = ["segment", "eval", str(data), "--head", str(tmp_path / "head"), "--out", str(tmp_path / "eval")]
    assert main(arguments) == 0
    ours = json.loads((tmp_path / "eval/results.json").read_text())["scores"]
    for name in ("mIoU", "mAcc", "aAcc"):
        assert 100 * ours[name] == pytest.approx(theirs[name], abs=0.011)


def test_only_native_heads_are_exported(small_checkpoint, tmp_path):
    config = shrink(Config.fromfile(CONFIGS / "upernet_ade20k.py"), small_checkpoint)
    with pytest.raises(HeadError, match="only a SailBackbone with a NativeHead"):
        export_head(MODELS.build(config.model), CLASSES, tmp_path, resize="native")


def test_an_exported_head_looks_at_images_as_the_test_pipeline_does(small_checkpoint, tmp_path):
    config = shrink(Config.fromfile(CONFIGS / "linear_cityscapes.py"), small_checkpoint)
    config.model.test_cfg.update(crop_size=(42, 56), stride=(28, 14))
    model = MODELS.build(config.model)
    export_head(model, CLASSES, tmp_path, resize="short512")
    exported = load_dense_head(tmp_path)
    assert str(exported.source.size) == "short512"
    assert (exported.window, exported.stride) == ((42, 56), (28, 14))
    assert str(inference_of(exported, 14)) == "at size short512, windows of 42x56 every 28x14 pixels"
    model.test_cfg = {"mode": "whole"}
    export_head(model, CLASSES, tmp_path, resize="448x672")
    exported = load_dense_head(tmp_path)
    assert (str(exported.source.size), exported.window, exported.stride) == ("448x672", None, None)
    with pytest.raises(UserError, match="resize '512px' is not understood; use native, short512"):
        export_head(model, CLASSES, tmp_path, resize="512px")
