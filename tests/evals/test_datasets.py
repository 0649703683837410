"""Every kind of data set."""

import csv
import io
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat

from evals.datasets.folders import DEVKIT
from evals.datasets.labelled import part_of
from evals.datasets.loading import load_dataset
from evals.datasets.made import MADE, SCENE_PARTS
from evals.errors import DatasetError
from evals.scenes import TRAINING_SEEDS
from sail_encoder.images.decoding import read_image
from sail_encoder.io.errors import ImageError, SourceError


def png(value=0, side=6):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def put(folder, *names):
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return folder


def opened(dataset):
    """The mean of each image, by key."""
    return {image.key: int(np.asarray(read_image(image.open())[0]).mean()) for image in dataset.images.images}


def samples(dataset):
    return sorted(zip(dataset.keys, dataset.targets.tolist(), dataset.parts, strict=True))


def test_folders_of_classes(tmp_path):
    put(tmp_path / "pets", "cat/a.png", "cat/deep/b.png", "dog/a.png")
    dataset = load_dataset(str(tmp_path / "pets"))
    assert samples(dataset) == [("cat/a.png", "cat", ""), ("cat/deep/b.png", "cat", ""), ("dog/a.png", "dog", "")]
    assert opened(dataset) == {"cat/a.png": 0, "cat/deep/b.png": 1, "dog/a.png": 2}


def test_folders_of_parts(tmp_path):
    put(tmp_path, "train/cat/a.png", "valid/cat/b.png", "Test/dog/c.png")
    assert samples(load_dataset(str(tmp_path))) == [
        ("Test/dog/c.png", "dog", "test"),
        ("train/cat/a.png", "cat", "train"),
        ("valid/cat/b.png", "cat", "val"),
    ]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train2017", "train"),
        ("Training_set", "train"),
        ("val2017", "val"),
        ("valid-images", "val"),
        ("dev", "val"),
        ("eval", "val"),
        ("test_2", "test"),
        *((name, "") for name in ("valley", "trainer", "testudo", "device", "train_station", "2017")),
    ],
)
def test_names_of_parts(name, part):
    assert part_of(name) == part


def test_parts_with_a_suffix(tmp_path):
    put(tmp_path, "train2017/cat/a.png", "val2017/dog/b.png")
    assert samples(load_dataset(str(tmp_path))) == [
        ("train2017/cat/a.png", "cat", "train"),
        ("val2017/dog/b.png", "dog", "val"),
    ]


def test_parts_are_not_taken_for_classes(tmp_path):
    folds = put(tmp_path / "folds", "one/cat/a.png", "one/dog/b.png", "two/cat/c.png", "two/dog/d.png")
    with pytest.raises(
        DatasetError, match=r"'one' and 'two' have the same folders inside \(cat, dog\), .*; name parts"
    ):
        load_dataset(str(folds))
    put(folds, "two/bird/e.png")
    assert set(load_dataset(str(folds)).targets) == {"one", "two"}
    mixed = put(tmp_path / "mixed", "train/cat/a.png", "holdout/cat/b.png")
    with pytest.raises(DatasetError, match="'train' is a part of the set, but 'holdout' beside it is none; name parts"):
        load_dataset(str(mixed))


def test_images_without_a_class(tmp_path):
    put(tmp_path, "a.png", "cat/b.png")
    with pytest.raises(DatasetError, match=r"'a.png' is in no folder that names its class"):
        load_dataset(str(tmp_path))


@pytest.fixture
def imagenet(tmp_path):
    put(tmp_path, "train/n01440764/x_1.JPEG", "train/n01443537/y_1.JPEG")
    put(tmp_path, *(f"val/ILSVRC2012_val_0000000{number}.JPEG" for number in (1, 2, 3)))
    return tmp_path


TRUTH = ["n01443537", "n01440764", "n01443537"]


def write_devkit(folder):
    data = folder / DEVKIT / "data"
    data.mkdir(parents=True)
    synsets = np.array([(2, "n01440764"), (1, "n01443537")], [("ILSVRC2012_ID", "f8"), ("WNID", "O")])
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n")
    return folder / DEVKIT


def check_imagenet(dataset):
    assert dataset.name == "imagenet1k"
    validation = [(key, target) for key, target, part in samples(dataset) if part == "val"]
    assert validation == [(f"val/ILSVRC2012_val_0000000{n}.JPEG", TRUTH[n - 1]) for n in (1, 2, 3)]
    training = [(key, target) for key, target, part in samples(dataset) if part == "train"]
    assert training == [("train/n01440764/x_1.JPEG", "n01440764"), ("train/n01443537/y_1.JPEG", "n01443537")]


def test_imagenet_with_its_devkit(imagenet, tmp_path_factory):
    devkit = write_devkit(imagenet)
    check_imagenet(load_dataset(str(imagenet)))
    archive = tmp_path_factory.mktemp("elsewhere") / f"{DEVKIT}.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(devkit, DEVKIT)
    check_imagenet(load_dataset(str(imagenet), labels=str(archive)))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("val_synsets.txt", TRUTH),
        ("val.txt", [f"ILSVRC2012_val_0000000{n}.JPEG {TRUTH[n - 1]}" for n in (3, 1, 2)]),
        (
            "LOC_val_solution.csv",
            ["ImageId,PredictionString", *(f"ILSVRC2012_val_0000000{n},{TRUTH[n - 1]} 1 2 3 4" for n in (2, 3, 1))],
        ),
    ],
)
def test_imagenet_with_a_list(imagenet, name, lines):
    (imagenet / name).write_text("\n".join(lines) + "\n")
    check_imagenet(load_dataset(str(imagenet)))


def test_imagenet_with_wrong_labels(imagenet):
    with pytest.raises(DatasetError, match="nor a list of synsets is beside it"):
        load_dataset(str(imagenet))
    (imagenet / "val_synsets.txt").write_text("n01440764\n")
    with pytest.raises(DatasetError, match="has 1 labels for 3 validation images"):
        load_dataset(str(imagenet))
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(str(imagenet), labels="nowhere.txt")
    (imagenet / "broken").mkdir()
    with pytest.raises(DatasetError, match="is not the devkit"):
        load_dataset(str(imagenet), labels=str(imagenet / "broken"))


def test_numbers_are_no_synsets(imagenet):
    lines = [f"ILSVRC2012_val_0000000{number}.JPEG {number + 64}" for number in (1, 2, 3)]
    (imagenet / "val.txt").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match="has '65' where a synset such as n01440764 is needed; give the devkit"):
        load_dataset(str(imagenet))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


ROWS = [
    {"path": "images/a.png", "label": "001", "split": "train"},
    {"path": "images/b.png", "label": "002", "split": "test"},
    {"path": "images/a.png", "label": "001", "split": "test"},
]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(tmp_path, kind):
    put(tmp_path, "images/a.png", "images/b.png")
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        write_csv(path, ROWS)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    dataset = load_dataset(str(path))
    assert samples(dataset) == [
        ("images/a.png", "001", "test"),
        ("images/a.png", "001", "train"),
        ("images/b.png", "002", "test"),
    ]
    assert len(dataset.images.images) == 2


def test_tables_of_labels_and_numbers(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    rows = [
        {"image": "a.png", "tags": "cat|dog", "x": "1.5", "y": "2"},
        {"image": "b.png", "tags": "", "x": "2.5", "y": "3"},
        {"image": "c.png", "tags": "bird", "x": "-1", "y": "4"},
    ]
    write_csv(tmp_path / "list.csv", rows)

    def load(column, task):
        return load_dataset(str(tmp_path / "list.csv"), label_column=column, task=task)

    several = load("tags", "multilabel")
    assert several.labels == ["bird", "cat", "dog"]
    assert several.targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert load("x", "regression").targets.tolist() == [1.5, 2.5, -1]
    assert load("x,y", "regression").targets.tolist() == [[1.5, 2], [2.5, 3], [-1, 4]]
    for column, task, message in (
        ("tags", "regression", "1 of 3 labels are missing, the first in row 2"),
        ("tags", "classification", "1 of 3 labels are missing"),
        ("image", "regression", "'a.png' is not a number"),
        ("kind", "classification", "no column 'kind'; there is image, tags, x, y"),
    ):
        with pytest.raises(DatasetError, match=message):
            load(column, task)


def test_tables_that_cannot_be(tmp_path):
    put(tmp_path, "a.png")
    write_csv(tmp_path / "list.csv", [{"path": "a.png", "label": "1", "split": "holdout"}])
    with pytest.raises(DatasetError, match="split 'holdout' is unknown; allowed is train"):
        load_dataset(str(tmp_path / "list.csv"))
    write_csv(tmp_path / "list.csv", [{"where": "a.png", "label": "1"}])
    with pytest.raises(SourceError, match="name the one with the paths 'path'"):
        load_dataset(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(DatasetError, match="has no rows"):
        load_dataset(str(tmp_path / "list.csv"))
    (tmp_path / "list.parquet").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        load_dataset(str(tmp_path / "list.parquet"))


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_webdataset(tmp_path):
    write_tar(
        tmp_path / "pets-train-000.tar", {"0/1.png": png(1), "0/1.cls": b"7", "0/2.x.png": png(2), "0/2.cls": b"8"}
    )
    write_tar(tmp_path / "pets-val-000.tar", {"0/1.json": b'{"label": "9", "age": 4}', "0/1.png": png(3)})
    expected = [
        ("pets-train-000/0/1.png", "7", "train"),
        ("pets-train-000/0/2.x.png", "8", "train"),
        ("pets-val-000/0/1.png", "9", "val"),
    ]
    for name in (str(tmp_path), str(tmp_path / "*.tar")):
        dataset = load_dataset(name)
        assert samples(dataset) == expected
        assert opened(dataset) == {key: value for value, (key, _, _) in enumerate(expected, 1)}
    ages = load_dataset(str(tmp_path / "pets-val-000.tar"), label_column="age", task="regression")
    assert ages.targets.tolist() == [4]
    with pytest.raises(DatasetError, match="has no label beside it"):
        load_dataset(str(tmp_path), label_column="age")
    write_tar(tmp_path / "broken.tar", {"1.png": png(), "1.json": b"{"})
    with pytest.raises(DatasetError, match=r"1\.json is not JSON"):
        load_dataset(str(tmp_path / "broken.tar"))


@pytest.mark.parametrize("order", [("cls", "png", "txt"), ("txt", "json", "png", "cls")])
def test_captions_are_not_taken_for_labels(tmp_path, order):
    contents = {"cls": b"7", "png": png(), "txt": b"a photo of a dog", "json": b'{"label": "9"}'}
    write_tar(tmp_path / "a.tar", {f"1.{suffix}": contents[suffix] for suffix in order})
    assert load_dataset(str(tmp_path / "a.tar")).targets.tolist() == ["7"]
    if "json" in order:
        assert load_dataset(str(tmp_path / "a.tar"), label_column="label").targets.tolist() == ["9"]
    write_tar(tmp_path / "b.tar", {"1.png": png(), "1.cls": b"\xff\xfe"})
    with pytest.raises(DatasetError, match=r"1\.cls is no text .*; choose another member with --label_column"):
        load_dataset(str(tmp_path / "b.tar"))


def pets(values, labels):
    """A Hugging Face dataset of one-colored images."""
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    cells = [{"bytes": png(value), "path": None} for value in values]
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=kinds)


def test_hugging_face_datasets_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.DatasetDict({"train": pets([1, 2], [0, 1]), "test": pets([3], [1])})
    whole.save_to_disk(tmp_path / "pets")
    dataset = load_dataset(str(tmp_path / "pets"))
    assert samples(dataset) == [
        ("test/00000000", "dog", "test"),
        ("train/00000000", "cat", "train"),
        ("train/00000001", "dog", "train"),
    ]
    assert opened(dataset) == {"train/00000000": 1, "train/00000001": 2, "test/00000000": 3}
    assert [image.size for image in dataset.images.images] == [len(png(value)) for value in (1, 2, 3)]
    assert samples(load_dataset(str(tmp_path / "pets" / "test"))) == [("test/00000000", "dog", "")]
    with pytest.raises(DatasetError, match="no column of labels; there is image, label"):
        load_dataset(str(tmp_path / "pets"), label_column="kind")
    pets([1], [-1]).save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(DatasetError, match="1 of 1 labels are missing"):
        load_dataset(str(tmp_path / "unlabelled"))


def test_selections_and_formats_of_hugging_face_datasets_are_kept(tmp_path):
    everything = pets(range(600), [value % 2 for value in range(600)]).with_format("numpy")
    everything.select(range(599, -1, -2)).save_to_disk(tmp_path / "odd", num_shards=3)
    dataset = load_dataset(str(tmp_path / "odd"))
    assert dataset.targets.tolist() == ["dog"] * 300
    with ThreadPoolExecutor(4) as threads:
        contents = list(threads.map(lambda image: image.open(), dataset.images.images))
    assert contents == [png(value) for value in range(599, -1, -2)]
    assert [image.size for image in dataset.images.images] == [len(content) for content in contents]


def test_images_of_hugging_face_datasets_may_lie_beside_them(tmp_path, monkeypatch):
    """As old versions of the library have left them."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "beside.png").write_bytes(png(7))
    (tmp_path / "state.json").touch()
    paths = [str(tmp_path / name) for name in ("beside.png", "gone.png")]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    cells = [*({"bytes": None, "path": path} for path in paths), None]
    made = datasets.Dataset.from_dict({"image": cells, "label": ["a", "b", "c"]}, features=kinds)
    monkeypatch.setattr(datasets, "load_from_disk", lambda folder, keep_in_memory: made)
    beside, gone, none = load_dataset(str(tmp_path)).images.images
    assert beside.open() == png(7)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        gone.open()
    with pytest.raises(ImageError):
        read_image(none.open())


def test_a_damaged_hugging_face_dataset_is_one_line(tmp_path):
    pets([1], [0]).save_to_disk(tmp_path / "pets")
    next((tmp_path / "pets").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(DatasetError, match=r"pets cannot be read as a Hugging Face dataset \(.*\); save it again"):
        load_dataset(str(tmp_path / "pets"))


def test_hugging_face_datasets_need_their_library(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match="is a Hugging Face dataset, which needs a library: pip install datasets"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", MADE)
def test_made_sets_are_the_same_every_time(name, monkeypatch):
    monkeypatch.setattr("evals.datasets.made.SCENE_PARTS", {"train": 20, "val": 5, "test": 5})
    first, second = load_dataset(name), load_dataset(name)
    assert first.keys == second.keys
    np.testing.assert_array_equal(first.targets, second.targets)
    assert first.images.images[3].open() == second.images.images[3].open()
    assert {"train", "test"} <= set(first.parts)
    assert (first.targets.ndim == 2) == (name in ("scenes-shapes", "scenes-position"))


def test_scenes_for_evaluation_are_not_those_of_training():
    assert sum(SCENE_PARTS.values()) < TRAINING_SEEDS.start


def test_names_that_are_no_data_set(tmp_path):
    with pytest.raises(DatasetError, match="no data set 'digit', did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(DatasetError, match="no data set '/nowhere'; use digits"):
        load_dataset("/nowhere")
    with pytest.raises(DatasetError, match="digits has targets of classification, not of regression"):
        load_dataset("digits", task="regression")
    put(tmp_path, "cat/a.png")
    with pytest.raises(DatasetError, match="folders name classes, but the task is regression"):
        load_dataset(str(tmp_path), task="regression")
