import errno
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from helpers import noise, save_images
from PIL import Image
from pyarrow import parquet

from sail_encoder import load_backbone
from sail_encoder.backbones.sail import SailVisionBackbone
from sail_encoder.commands.extract import extract
from sail_encoder.extraction import pipeline
from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.store import sinks


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture
def run(small_checkpoint, photos, tmp_path):
    """Extracts the photographs with the small model."""

    def run_extract(out="out", source=photos, **options):
        folder = tmp_path / out
        status = extract([str(source)], str(folder), **{"model": str(small_checkpoint), **options})
        return folder, status

    return run_extract


def fail_with(error):
    def fail(self, pack, layers, norm):
        raise error

    return fail


def index(folder):
    return {row["path"]: row for row in parquet.read_table(folder / "index.parquet").to_pylist()}


def stored(folder, row):
    array = np.load(folder / row["file"])
    return array if row["row"] is None else array[row["row"]]


def test_grids_equal_those_of_the_backbone(run, photos, small_backbone):
    folder, status = run(store_dtype="float32", token_budget=64)
    assert status == 0
    rows = index(folder)
    paths = sorted(photos.glob("*.png"))
    assert list(rows) == [path.name for path in paths]
    for path, features in zip(paths, small_backbone.encode(paths), strict=True):
        row = rows[path.name]
        grid = np.load(folder / "features" / f"{path.name}.npy")
        assert grid.shape == (row["grid_height"], row["grid_width"], 64) == tuple(features.grid.shape)
        assert (row["image_height"], row["image_width"]) == features.image_size
        np.testing.assert_allclose(grid, features.grid.numpy(), rtol=1e-4, atol=1e-5)


def test_several_layers_and_no_norm(run, photos, small_backbone):
    folder, _ = run(layers="0,-1", norm=False)
    path = photos / "003.png"
    features = small_backbone.encode([path], layers=[0, -1], norm=False)[0]
    grid = np.load(folder / "features" / "003.png.npy")
    assert grid.dtype == np.float16
    expected = torch.stack(list(features.layers.values())).numpy()
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("layers", ["-1", "last2"])
def test_pooled_shards(run, photos, small_backbone, pool, layers):
    folder, _ = run(pool=pool, layers=layers, store_dtype="float32", token_budget=100)
    assert not (folder / "features").exists()
    for path, row in index(folder).items():
        features = small_backbone.encode([photos / path], layers=layers)[0]
        expected = np.stack([features.pool(pool, layer).numpy() for layer in features.layers]).squeeze()
        np.testing.assert_allclose(stored(folder, row), expected, rtol=1e-4, atol=1e-5)


def test_resizing_options(run):
    folder, _ = run(resize="28x42")
    assert {(row["grid_height"], row["grid_width"]) for row in index(folder).values()} == {(2, 3)}
    folder, _ = run("limited", max_tokens=6)
    assert all(row["grid_height"] * row["grid_width"] <= 6 for row in index(folder).values())


def test_running_again_does_only_what_is_missing(run, photos, tmp_path, capsys):
    source = save_images(tmp_path / "growing", 3)
    folder, _ = run(source=source)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("features/*")}
    Image.fromarray(noise(30, 30)).save(source / "new.png")
    run(source=source)
    assert "4 images in" in capsys.readouterr().out.splitlines()[-1]
    after = {path: path.stat().st_mtime_ns for path in folder.glob("features/*")}
    assert len(after) == 4
    assert all(after[path] == before[path] for path in before)
    runs = json.loads((folder / "run.json").read_text())["runs"]
    assert [report["images"] for report in runs] == [3, 1]
    assert runs[0]["images_per_second"] > 0
    assert runs[0]["peak_memory_bytes"] > 1e7


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": "0"}, "layers was [2], now [0]"),
        ({"norm": False}, "norm was True, now False"),
        ({"pool": "mean"}, "pool was none, now mean"),
        ({"store_dtype": "float32"}, "store_dtype was float16, now float32"),
        ({"resize": "28"}, "size was native, now 28x28"),
        ({"max_tokens": 9}, "max_tokens was 4096, now 9"),
        ({"exif_rotate": True}, "exif_rotate was False, now True"),
        ({"precision": "bfloat16"}, "precision was float32, now bfloat16"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(run, change, named):
    run()
    with pytest.raises(StoreError) as error:
        run(**change)
    assert named in str(error.value)


def test_another_model_or_another_source_in_the_same_folder_is_refused(run, tmp_path, small_model):
    run()
    other = tmp_path / "other"
    with torch.no_grad():
        small_model.model.vis_embed.weight.add_(1)
        small_model.save_pretrained(other)
        small_model.model.vis_embed.weight.sub_(1)
    with pytest.raises(StoreError, match="weights was"):
        run(model=str(other))
    with pytest.raises(StoreError, match="root was"):
        run(source=save_images(tmp_path / "elsewhere", 2))


def test_a_run_that_raises_lets_go_of_the_folder(run, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("sail_encoder.backbones.sail.SailVisionBackbone.forward", fail_with(RuntimeError("a bug")))
        with pytest.raises(RuntimeError) as kept:
            run()
    folder, status = run()
    assert status == 0
    assert len(index(folder)) == 12
    assert kept.value.__traceback__ is not None, "as a notebook keeps it, with all that its frames hold"


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_a_disk_that_fills_up_ends_the_run_and_it_goes_on(run, monkeypatch, capsys, pool):
    whole, _ = run("whole", pool=pool, token_budget=40)
    sink = sinks.FileSink if pool == "none" else sinks.ShardSink
    original, written = sink.write, []

    def fill_up(self, records, arrays):
        written.append(len(records))
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, records, arrays)

    with monkeypatch.context() as full:
        full.setattr(sink, "write", fill_up)
        with pytest.raises(StoreError, match="No space left on device"):
            run(pool=pool, token_budget=40)
    assert len(written) == 4, "nothing is written behind a failure"
    folder, status = run(pool=pool, token_budget=40)
    assert status == 0
    assert f"{12 - sum(written[:3])} of them new" in capsys.readouterr().out
    for path, row in index(folder).items():
        assert (stored(folder, row) == stored(whole, index(whole)[path])).all()


def test_overwrite_starts_again(run):
    run()
    folder, status = run(layers="0", overwrite=True)
    assert status == 0
    assert json.loads((folder / "run.json").read_text())["settings"]["layers"] == [0]


def test_dry_run_does_nothing(run, capsys):
    folder, status = run(dry_run=True)
    assert status == 0
    assert not folder.exists()
    assert "12 of 12 images to do" in capsys.readouterr().out


def test_a_dry_run_counts_what_has_changed(run, tmp_path, capsys):
    source = save_images(tmp_path / "growing", 3)
    run(source=source)
    os.utime(source / "001.png", (1, 1))
    run(source=source, dry_run=True)
    assert "1 of 3 images to do" in capsys.readouterr().out


def test_a_foreign_folder_is_refused_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sail_encoder.backbones.registry.load_backbone", lambda *options: pytest.fail("loaded a model"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"run\.json is damaged, or of another program"):
            run(overwrite=overwrite)


def test_a_disk_that_is_too_small_is_an_error_before_any_work(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(StoreError, match="free some space"):
        run()


def test_shards_together_do_everything(run, photos):
    whole, _ = run("whole", store_dtype="float32")
    for shard in ("1/3", "0/3", "2/3"):
        parts, status = run("parts", store_dtype="float32", shard=shard)
        assert status == 0
    assert list(index(parts)) == list(index(whole))
    for path, row in index(parts).items():
        np.testing.assert_allclose(stored(parts, row), stored(whole, index(whole)[path]), rtol=1e-4, atol=1e-5)
    assert not (parts / ".work").exists()


def test_one_process_a_device(run):
    whole, _ = run("whole", store_dtype="float32")
    folder, status = run("devices", store_dtype="float32", devices="cpu,cpu")
    assert status == 0
    assert len(json.loads((folder / "run.json").read_text())["runs"]) == 2
    assert run("devices", store_dtype="float32") == (folder, 0), "one device goes on where several have ended"
    for path, row in index(folder).items():
        np.testing.assert_allclose(stored(folder, row), stored(whole, index(whole)[path]), rtol=1e-4, atol=1e-5)


def test_tar_shards_and_lists(run, photos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for path in sorted(photos.glob("*.png"))[:3]:
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            shard.addfile(member, io.BytesIO(path.read_bytes()))
    plain, _ = run("plain", store_dtype="float32")
    folder, status = run("tar", source=tmp_path / "shard.tar", store_dtype="float32")
    assert status == 0
    assert list(index(folder)) == ["shard/000.png", "shard/001.png", "shard/002.png"]
    for path, row in index(folder).items():
        same = index(plain)[path.removeprefix("shard/")]
        np.testing.assert_allclose(stored(folder, row), stored(plain, same), rtol=1e-4, atol=1e-5)
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(map(str, sorted(photos.glob("*.png"))[3:5])))
    folder, _ = run("list", source=tmp_path / "list.csv")
    assert list(index(folder)) == ["003.png", "004.png"]


def test_features_that_do_not_fit_float16_are_failures(run, tmp_path, small_model):
    loud = tmp_path / "loud"
    scale = 1e6
    with torch.no_grad():
        small_model.model.vis_embed.weight.mul_(scale)
        small_model.save_pretrained(loud)
        small_model.model.vis_embed.weight.div_(scale)
    folder, status = run(model=str(loud), norm=False, layers="0")
    assert status == 1
    assert all(row["status"] == "failed" for row in index(folder).values())
    assert "do not fit float16" in (folder / "failures.csv").read_text()
    _, status = run("wide", model=str(loud), norm=False, layers="0", store_dtype="float32")
    assert status == 0


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")],
)
def test_out_of_memory_halves_the_budget_and_goes_on(run, monkeypatch, error):
    budgets = []
    original = SailVisionBackbone.forward

    def limited(self, batch, *args):
        tokens = len(batch.views[0])
        budgets.append(tokens)
        if tokens > 70:
            raise error
        return original(self, batch, *args)

    monkeypatch.setattr(SailVisionBackbone, "forward", limited)
    folder, status = run("tight", store_dtype="float32", max_tokens=64)
    rows = index(folder)
    assert status == 0
    assert max(budgets) > 70
    assert max(budgets[-3:]) <= 70
    assert len(rows) == 12
    report = json.loads((folder / "run.json").read_text())["runs"][0]
    assert report["token_budget"] < 2048
    reference, _ = run("reference", store_dtype="float32", max_tokens=64, token_budget=64)
    for path, row in rows.items():
        np.testing.assert_allclose(stored(folder, row), stored(reference, index(reference)[path]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_image_that_is_too_large_alone_is_a_failure(run, monkeypatch, device):
    error = {
        "cuda": torch.OutOfMemoryError("CUDA out of memory"),
        "mps": RuntimeError("MPS backend out of memory (...)"),
    }
    monkeypatch.setattr("sail_encoder.backbones.sail.SailVisionBackbone.forward", fail_with(error[device]))
    folder, status = run()
    assert status == 1
    assert (folder / "failures.csv").read_text().count("out of memory with its") == 12


def test_a_copy_that_nothing_can_wait_for_is_waited_for_at_once(monkeypatch):
    begun, original = [], torch.Tensor.to

    def to(self, *arguments, non_blocking=False):
        begun.append(non_blocking)
        return original(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "to", to)
    assert pipeline.copy_to_host(torch.zeros(1, 2, 3))[2] is None
    assert begun == [False, False]


def test_other_errors_are_not_mistaken_for_memory(run, monkeypatch):
    monkeypatch.setattr("sail_encoder.backbones.sail.SailVisionBackbone.forward", fail_with(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run()


def test_overwrite_is_refused_where_others_share_the_run(run):
    folder, _ = run()
    with pytest.raises(UserError, match="would delete what the other shards have written"):
        run(shard="1/8", overwrite=True)
    assert len(list((folder / "features").iterdir())) == 12


def test_mistakes_are_one_line(run):
    for options, message in (
        ({"layers": "9"}, "has -3 to 2"),
        ({"resize": "15"}, "multiple of the patch size"),
        ({"shard": "3/3"}, "such as 0/4"),
        ({"devices": "tpu"}, "not understood"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(**options)
        assert "\n" not in str(error.value)


def test_features_equal_load_backbone_in_bfloat16(run, photos, small_checkpoint):
    folder, _ = run(precision="bfloat16", store_dtype="float32")
    half = load_backbone(str(small_checkpoint), dtype="bfloat16")
    features = half.encode([photos / "000.png"])[0]
    grid = np.load(folder / "features" / "000.png.npy")
    assert np.abs(grid - features.grid.float().numpy()).max() < 0.05
