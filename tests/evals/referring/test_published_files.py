"""The published files of RefCOCO and gRefCOCO: what is read, and what is refused."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from evals.errors import DatasetError
from evals.referring import published
from evals.referring.data import open_splits
from evals.referring.pickles import read_pickle


def test_splits_and_masks(refcoco):
    folder, masks = refcoco
    assert list(open_splits(str(folder), "all")) == ["val", "testA", "testB"]
    train, val, test = open_splits(str(folder), "train", "val", "testA").values()
    assert [len(train), len(val), len(test)] == [3, 2, 1]
    for index in range(3):
        image, expressions, found = train.read(index)
        assert image.size == (80, 60)
        assert [expression.targets for expression in expressions] == [(10 * index,), (10 * index + 1,)]
        for expression, mask in zip(expressions, found, strict=True):
            assert np.array_equal(mask, masks[expression.targets[0]])
    assert val.read(0)[1][0].text.startswith("the ")
    assert len({train.identity, val.identity}) == 2


def test_several_targets_and_none(grefcoco):
    folder, masks = grefcoco
    val = open_splits(str(folder), "val")["val"]
    _, expressions, found = val.read(0)
    said = {expression.text: mask for expression, mask in zip(expressions, found, strict=True)}
    assert np.array_equal(said["both things"], masks[30] | masks[31])
    assert not said["the plane"].any()


def test_json_and_python_2_and_the_file_itself(refcoco, tmp_path):
    """Text of Python 2 is read as UTF-8."""
    folder = copy_of(refcoco, tmp_path)
    refs = read_pickle(folder / "refs(unc).p")
    (folder / "refs(unc).json").write_text(json.dumps(refs))
    with pytest.raises(DatasetError, match=r"has refs\(unc\)\.p and refs\(unc\)\.json; name one of these files"):
        open_splits(str(folder), "val")
    one, other = (open_splits(str(folder / f"refs(unc).{kind}"), "val")["val"] for kind in ("p", "json"))
    assert one.images == other.images
    # As Python 2 writes a list with the text "déjà" and a number.
    (folder / "old.p").write_bytes(b"(lp0\nS'd\\xc3\\xa9j\\xc3\\xa0'\np1\naI7\na.")
    assert read_pickle(folder / "old.p") == ["déjà", 7]


class Attack:
    """A pickle of it deletes a file, where it is read by `pickle.load`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.remove, (str(self.path),)


def test_code_in_a_pickle_is_not_run(refcoco, tmp_path):
    folder = copy_of(refcoco, tmp_path)
    victim = tmp_path / "precious.txt"
    victim.write_text("mine")
    refs = read_pickle(folder / "refs(unc).p")
    with (folder / "refs(unc).p").open("wb") as file:
        pickle.dump([*refs, Attack(victim)], file)
    with pytest.raises(DatasetError, match=r"is no pickle of plain data: it names posix.remove, which would be run"):
        open_splits(str(folder), "val")
    assert victim.read_text() == "mine"
    with pytest.raises(FileNotFoundError):
        pickle.loads((folder / "refs(unc).p").read_bytes()), victim.read_text()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02]q\x00", pickle.dumps(np.zeros(3))])
def test_damaged_pickles_are_one_line(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"refs\(unc\)\.p (cannot be read as a pickle|is no pickle of plain data)"
    ) as told:
        read_pickle(path)
    assert "\n" not in str(told.value)


def copy_of(data, tmp_path):
    return shutil.copytree(data[0], tmp_path / "copy")


def change(folder, **fields):
    """Changes the first expression of the data set."""
    refs = read_pickle(folder / "refs(unc).p")
    refs[0] = {**refs[0], **fields}
    with (folder / "refs(unc).p").open("wb") as file:
        pickle.dump(refs, file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sentences": [{"sent": "  "}]}, r"image 500 cannot be asked \(the expression is empty"),
        ({"sentences": [{"sent": "."}]}, "image 500 cannot be asked .*is empty"),
        ({"sentences": [{"sent": "\t."}]}, "image 500 cannot be asked .*is empty"),
        ({"sentences": [{}]}, "image 500 cannot be asked .*is empty"),
        ({"sentences": [{"sent": "a \ud83d ball"}]}, "image 500 cannot be asked .*half of a character"),
        ({"sentences": [{"sent": "the [SEG]"}]}, r"holds \[SEG\], which stands for a mask"),
        ({"sentences": [{"sent": "the <vpatch>"}]}, "holds <vpatch>, which stands for an image"),
        ({"sentences": [{"sent": "beside <Prompt0>"}]}, "names <Prompt0>, but there is no region"),
        ({"ann_id": 999}, "has no mask 999 of image 500, which refs"),
        ({"ann_id": 10}, "has no mask 10 of image 500, which refs"),
        ({"image_id": 7}, "has no image 7, which refs"),
        ({"ann_id": "x"}, "holds no referring expressions"),
        ({"split": 3}, "holds no referring expressions"),
    ],
)
def test_what_is_wrong_with_expressions_is_told(refcoco, tmp_path, fields, message):
    folder = copy_of(refcoco, tmp_path)
    change(folder, **fields)
    with pytest.raises(DatasetError, match=message) as told:
        open_splits(str(folder), "train", "val")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["image_id", "split", "sentences", "ann_id"])
def test_what_an_expression_lacks_is_told(refcoco, tmp_path, name):
    folder = copy_of(refcoco, tmp_path)
    first, *others = read_pickle(folder / "refs(unc).p")
    del first[name]
    (folder / "refs(unc).p").write_bytes(pickle.dumps([{**first, "ref_id": 1}, *others]))
    with pytest.raises(DatasetError, match="one has not image_id, split, sentences and ann_id"):
        open_splits(str(folder), "train")


def test_images_of_which_nothing_is_said_are_left_out(refcoco, tmp_path):
    folder = copy_of(refcoco, tmp_path)
    refs = read_pickle(folder / "refs(unc).p")
    silent = [{**ref, "sentences": []} if ref["image_id"] == 500 else ref for ref in refs]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(silent))
    train = open_splits(str(folder), "train")["train"]
    assert len(train) == 2
    assert len(train.read(0)[1]) == 2
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref for ref in refs if ref["split"] == "train"]))
    with pytest.raises(DatasetError, match="has no split but train"):
        open_splits(str(folder), "all")


def test_a_mask_of_several_expressions_is_decoded_once(refcoco, tmp_path, monkeypatch):
    folder = copy_of(refcoco, tmp_path)
    change(folder, sentences=[{"sent": "one"}, {"sent": "the same"}, {"sent": "it"}])
    train, decoded = open_splits(str(folder), "train")["train"], []
    decode = published.decode_mask
    monkeypatch.setattr(published, "decode_mask", lambda *given: decoded.append(given) or decode(*given))
    _, expressions, masks = train.read(0)
    assert [expression.targets for expression in expressions] == [(0,), (0,), (0,), (1,)]
    assert len(decoded) == 2
    for mask, target in zip(masks, (0, 0, 0, 1), strict=True):
        assert np.array_equal(mask, refcoco[1][target])


def test_other_masks_are_other_data(refcoco, tmp_path):
    """As another expression is, and masks of another split are not."""
    folder = copy_of(refcoco, tmp_path)
    names = ("train", "val")
    before = [split.identity for split in open_splits(str(folder), *names).values()]
    instances = json.loads((folder / "instances.json").read_text())
    next(one for one in instances["annotations"] if one["id"] == 10)["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    (folder / "instances.json").write_text(json.dumps(instances))
    after = [split.identity for split in open_splits(str(folder), *names).values()]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]
    change(folder, sentences=[{"sent": "that one"}])
    assert open_splits(str(folder), "train")["train"].identity not in (before[0], after[0])


def test_images_in_a_folder_of_their_split(refcoco, tmp_path):
    folder = copy_of(refcoco, tmp_path)
    shutil.move(folder / "images", tmp_path / "elsewhere")
    (folder / "images").mkdir()
    shutil.move(tmp_path / "elsewhere", folder / "images" / "train2014")
    assert len(open_splits(str(folder), "train")["train"]) == 3


def test_missing_files_are_told(refcoco, tmp_path):
    folder = copy_of(refcoco, tmp_path)
    with pytest.raises(DatasetError, match="has no split 'test'; it has train, val, testA, testB"):
        open_splits(str(folder), "test")
    shutil.move(folder / "images", tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"no folder with COCO's images of train2014 at .*; link it as .*images"):
        open_splits(str(folder), "val")
    (tmp_path / "train2014").symlink_to(tmp_path / "elsewhere")
    assert len(open_splits(str(folder), "val")["val"]) == 2
    next((tmp_path / "elsewhere").glob("*3.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"no image .*0003\.jpg, which"):
        open_splits(str(folder / "refs(unc).p"), "val")
    (folder / "instances.json").unlink()
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(DatasetError, match=r"no .*instances\.json; it belongs beside the expressions"):
        open_splits(str(tmp_path / "other"), "val")
    with pytest.raises(DatasetError, match="has no file of referring expressions"):
        open_splits(str(tmp_path), "val")


@pytest.mark.parametrize("size", [(40, 30), (60, 80)])
def test_images_of_another_size_are_told(refcoco, tmp_path, size):
    folder = copy_of(refcoco, tmp_path)
    name = next((folder / "images").glob("*0.jpg"))
    Image.new("RGB", size).save(name)
    train = open_splits(str(folder), "train")["train"]
    with pytest.raises(DatasetError, match=f"is {size[0]}x{size[1]} pixels, its masks 80x60; get the images"):
        train.read(0)
