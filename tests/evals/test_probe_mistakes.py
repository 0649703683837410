"""What `sail probe` and `sail sweep` refuse or tell, in one line."""

import re
import tarfile

import pytest

from sail_cli import main
from sail_encoder.store.reading import FeatureFolder


def test_images_on_both_sides_are_told(pets, small_checkpoint, tmp_path, capsys):
    rows = [f"{path},{path.parent.name},train" for path in sorted(pets.rglob("*.png"))]
    rows += [row.replace(",train", ",test") for row in rows[:7] + rows[-7:]]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    command = ["probe", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--probes", "ridge"]
    assert main([*command, "--model", str(small_checkpoint)]) == 0
    assert "warning: 14 images of the test set are in the training or validation set too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probes", "linaer"], "no head 'linaer'; there is linear"),
        (["--probes", ""], "no probe was named"),
        (["--seeds", "0"], "seeds is 0"),
        (["--val_share", "1"], "val_share is 1"),
        (["--layers", "9"], "layer 9 does not exist"),
        (["--online", "true", "--probes", "knn"], "knn cannot see augmented images"),
        (
            ["--online", "true", "--probes", "linear", "--crop", "30"],
            "not a multiple of the patch size 14; the nearest",
        ),
        (
            ["--online", "true", "--probes", "linear", "--crop", "28", "--test_resize", "27"],
            "--test_resize cannot be 27; allowed is 28 or more, the side of the crops",
        ),
        (["--config", "{config}"], "probe 'knn' has no setting 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_mistakes_are_one_line(pets, small_checkpoint, tmp_path, arguments, message, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("probes: {knn: {temprature: 1}}\n")
    arguments = [argument.format(config=config) for argument in arguments]
    command = ["probe", str(pets), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint), *arguments]
    assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sail: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.fixture(scope="module")
def sources(pets, small_checkpoint, tmp_path_factory):
    """A data set of each kind that sail probe reads, by name."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(folder / "pets.tar", "w") as shard:
        for image in sorted(pets.rglob("*.png")):
            shard.add(image, f"{image.stem}.png")
    (folder / "list.csv").write_text(
        "".join(["path,label\n", *(f"{one},{one.parent.name}\n" for one in pets.rglob("*.png"))])
    )
    model = ["--model", str(small_checkpoint)]
    for pool in ("none", "mean"):
        assert main(["extract", str(pets), "--out", str(folder / pool), "--pool", pool, *model]) == 0
    names = {"shards": "pets.tar", "table": "list.csv", "grids": "none", "vectors": "mean"}
    return {"folder": str(pets), "made": "digits"} | {kind: str(folder / name) for kind, name in names.items()}


def test_a_path_listed_twice_is_refused(sources, tmp_path, capsys):
    paths = [entry.path for entry in FeatureFolder(sources["vectors"]).entries]
    rows = [f"{path},{number % 2}" for number, path in enumerate([*paths, paths[3], f"./{paths[5]}"])]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    command = ["probe", sources["vectors"], "--out", str(tmp_path / "out"), "--probes", "ridge"]
    assert main([*command, "--labels", str(tmp_path / "labels.csv")]) == 2
    assert f"lists 2 paths more than once, such as {paths[3]}; keep one row of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "option"),
    [
        *(("folder", f"{name} {value}") for name, value in (("labels", "x"), ("label_column", "x"))),
        *((kind, "labels x") for kind in ("made", "table", "shards")),
        *(("made", "label_column x"), ("grids", "label_column x")),
        *(("table", "crop 224"), ("made", "workers 0"), ("folder", "test_resize 256")),
        *(("grids", f"{name} x") for name in ("model", "layers", "resize")),
        *(("grids", "norm false"), ("grids", "store_dtype float32"), ("grids", "precision bfloat16")),
        *(("grids", "max_tokens 9"), ("grids", "baselines true"), ("vectors", "pool max")),
    ],
)
def test_options_that_nothing_reads_are_refused(sources, source, option, tmp_path, capsys):
    name, value = option.split()
    assert main(["probe", sources[source], "--out", str(tmp_path / "out"), f"--{name}", value]) == 2
    assert f"--{name} " in (error := capsys.readouterr().err)
    assert "has no effect with" in error or "has no effect without" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["resize 56", "max_tokens 9", "store_dtype float32", "baselines true"])
def test_online_training_stores_no_features(sources, option, tmp_path, capsys):
    name, value = option.split()
    command = ["probe", sources["folder"], "--out", str(tmp_path / "out"), "--online", "true"]
    assert main([*command, f"--{name}", value]) == 2
    assert f"--{name} has no effect with --online true" in capsys.readouterr().err


def test_one_class_is_told_before_anything_is_extracted(pets, small_checkpoint, tmp_path, capsys):
    command = ["probe", str(pets / "cat"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main(command) == 2
    assert "is in no folder that names its class" in capsys.readouterr().err
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cat").symlink_to(pets / "cat")
    assert main(["probe", str(tmp_path / "one"), *command[2:]]) == 2
    assert "labels are one class, 'cat'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["probe", "sweep"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_unknown_classes_are_told_before_anything_is_extracted(pets, small_checkpoint, tmp_path, command, part, capsys):
    rows = [
        f"{path},{path.parent.name},{('train', 'val', 'test')[n % 3]}" for n, path in enumerate(pets.rglob("*.png"))
    ]
    rows.append(f"{rows[0].split(',')[0]},fox,{part}")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    options = [str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([command, *options, "--probes", "ridge"]) == 2
    assert re.search(
        r"1 classes of the (validation|test) set of .* training set, such as 'fox'", capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["probe", "sweep"])
def test_numbers_have_no_logistic_regression(command, small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evals.datasets.made.SCENE_PARTS", {"train": 20, "val": 5, "test": 5})
    options = ["scenes-position", "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([command, *options, "--probes", "logistic"]) == 2
    assert "logistic regression has no task 'regression'; use ridge" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    if command == "sweep":
        assert main([command, *options, "--plots", "false"]) == 0
        assert "logistic" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["probe", "sweep"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_of_which_nothing_can_be_read(pets, small_checkpoint, tmp_path, command, part, capsys):
    for number, image in enumerate(sorted(pets.rglob("*.png"))):
        path = tmp_path / "set" / ("train", "val", "test")[number % 3] / image.parent.name / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing" if path.parts[-3] == part else image.read_bytes())
    arguments = [str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--model", str(small_checkpoint)]
    assert main([command, *arguments, "--probes", "ridge"]) == 2
    name = {"train": "training", "val": "validation"}.get(part, part)
    assert f"none of the 20 images of the {name} set of set can be read" in capsys.readouterr().err
