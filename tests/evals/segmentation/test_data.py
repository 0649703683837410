"""Finding data sets, what their ids mean, and what is said when something is wrong with them."""

import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from evals.errors import DatasetError
from evals.segmentation import labels
from evals.segmentation.labels import ADE20K, CITYSCAPES, COCO_STUFF, PASCAL_CONTEXT, VOC2012, ClassMap, palette
from evals.segmentation.layouts import DataSource
from heads.dense import IGNORE
from sail_cli import main

SIZE = (30, 40)


def put(root, image, mask, ids=(0, 1)):
    """An image and a mask with these ids, under these paths."""
    for path in (image, mask):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*SIZE)).save(root / image)
    Image.fromarray(np.resize(np.array(ids, np.uint8), SIZE)).save(root / mask)


def put_list(root, path, *names):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("\n".join(names) + "\n")


def ade20k(root):
    base = root / "ADEChallengeData2016"
    put(base, "images/training/a.jpg", "annotations/training/a.png", [0, 1, 150])
    put(base, "images/validation/b.jpg", "annotations/validation/b.png", [0, 2])


def cityscapes(root):
    for split, city, ids in (("train", "ulm", [0, 7, 33]), ("val", "bonn", [8])):
        stem = f"{split}/{city}/{city}_000000_000019"
        put(root, f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png", ids)
        put(root, f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_color.png")


def voc2012(root):
    base = root / "VOCdevkit/VOC2012"
    for name in ("2007_1", "2007_2", "2008_3"):
        put(base, f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", [0, 20, 255])
    put_list(base, "ImageSets/Segmentation/train.txt", "2007_1")
    put_list(base, "ImageSets/Segmentation/val.txt", "2007_2")


def voc2012aug(root):
    voc2012(root)
    base = root / "VOCdevkit/VOC2012"
    put(base, "JPEGImages/2008_4.jpg", "SegmentationClassAug/2008_4.png", [0, 20])
    put_list(base, "ImageSets/Segmentation/aug.txt", "2008_4")


def context(root):
    base = root / "VOCdevkit/VOC2010"
    for name in ("1", "2"):
        put(base, f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png", [0, 1, 59])
    put_list(base, "ImageSets/SegmentationContext/train.txt", "1")
    put_list(base, "ImageSets/SegmentationContext/val.txt", "2")


def cocostuff(root):
    for split in ("train2017", "val2017"):
        put(root, f"images/{split}/000.jpg", f"annotations/{split}/000.png", [0, 90 + 1, 181, 255])


@pytest.mark.parametrize(
    ("write", "layout", "counts", "names", "labels"),
    [
        (ade20k, "ade20k", (1, 1), ADE20K, [IGNORE, 0, 149]),
        (cityscapes, "cityscapes", (1, 1), CITYSCAPES, [IGNORE, 0, 18]),
        (voc2012, "voc2012", (1, 1), VOC2012, [0, 20, IGNORE]),
        (voc2012aug, "voc2012aug", (2, 1), VOC2012, [0, 20, IGNORE]),
        (context, "context59", (1, 1), PASCAL_CONTEXT, [IGNORE, 0, 58]),
        (context, "context60", (1, 1), ("background", *PASCAL_CONTEXT), [0, 1, 59]),
        (cocostuff, "cocostuff", (1, 1), COCO_STUFF, [0, 80, 170, IGNORE]),
    ],
)
def test_official_layouts(write, layout, counts, names, labels, tmp_path):
    write(tmp_path)
    splits = DataSource(str(tmp_path), layout).open("train", "val")
    assert tuple(map(len, splits)) == counts
    assert splits[0].class_map.names == list(names)
    read = splits[0].read_labels(0)
    assert read.shape == SIZE
    assert read.flatten()[: len(labels)].tolist() == labels


def test_numbers_of_classes_are_those_of_the_data_sets():
    counts = {name: len(getattr(labels, name)) for name in ("ADE20K", "CITYSCAPES", "VOC2012", "COCO_STUFF")}
    assert counts == {"ADE20K": 150, "CITYSCAPES": 19, "VOC2012": 21, "COCO_STUFF": 171}
    for name in (*counts, "PASCAL_CONTEXT"):
        names = getattr(labels, name)
        assert len(set(names)) == len(names)


@pytest.fixture
def plain(tmp_path):
    for split in ("train", "val"):
        for name in "abc":
            put(tmp_path, f"images/{split}/{name}.jpg", f"masks/{split}/{name}.png", [0, 1, 2, 255])
    return tmp_path


def test_folders_of_ade20k_are_no_plain_folders(tmp_path):
    ade20k(tmp_path)
    root = str(tmp_path / "ADEChallengeData2016")
    for split, folder in (("train", "training"), ("val", "validation")):
        with pytest.raises(
            DatasetError, match=f"annotations/{folder} is a name of ADE20K, .*; use --layout ade20k, or"
        ):
            DataSource(root).open(split)
    ids = write_map(tmp_path, {"0": None, "1": "wall", "2": "building", "150": "flag"})
    (data,) = DataSource(root, class_map=str(ids)).open("train")
    assert data.read_labels(0)[0, :3].tolist() == [IGNORE, 0, 2]
    assert DataSource(root, "ade20k").open("val")[0].class_map.names == list(ADE20K)


def test_any_folder(plain):
    train, val = DataSource(str(plain)).open("train", "val")
    assert [sample.name for sample in train.samples] == ["a", "b", "c"]
    assert val.class_map.names == ["class 0", "class 1", "class 2"]
    assert train.read_labels(0).flatten()[:4].tolist() == [0, 1, 2, IGNORE]
    reduced = DataSource(str(plain), reduce_zero_label=True).open("train")[0]
    assert reduced.class_map.names == ["class 1", "class 2"]
    assert reduced.read_labels(0).flatten()[:4].tolist() == [IGNORE, 0, 1, IGNORE]
    with pytest.raises(DatasetError, match=r"none of the 2 classes: 255 \("):
        DataSource(str(plain), class_map=str(write_map(plain, {"0": "x", "1": "y", "2": None}))).open("train")


def test_a_single_id_is_not_taken_for_a_task(plain):
    for path in (plain / "masks").rglob("*.png"):
        Image.fromarray(np.resize(np.array([0, 255], np.uint8), SIZE)).save(path)
    with pytest.raises(DatasetError, match="only id 0 besides those that do not count"):
        DataSource(str(plain)).open("train")
    path = write_map(plain, {"0": "background", "255": "cell"})
    assert DataSource(str(plain), class_map=str(path)).open("train")[0].read_labels(0)[0, :2].tolist() == [0, 1]


def put_pixel(root, value):
    labels = np.resize(np.array([0, 1, 2], np.uint8), SIZE)
    labels[0, 0] = value
    Image.fromarray(labels).save(root / "masks/train/b.png")


def test_ids_that_no_mask_has_are_told_and_too_many_are_refused(plain, capsys):
    DataSource(str(plain)).open("train")
    assert "no mask has" not in capsys.readouterr().err
    put_pixel(plain, 13)
    assert len(DataSource(str(plain)).open("train")[0].class_map.names) == 14
    told = "no mask has 10 of the 13 ids below 13, the highest, which .*/masks/train/b.png has; use --ignore_label or"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no mask has" in line]
    assert re.match(told, line)
    put_pixel(plain, 200)
    with pytest.raises(
        DatasetError, match=r"no mask has 197 of the 200 ids below 200, .*b\.png has; use --ign"
    ) as caught:
        DataSource(str(plain)).open("train")
    assert "\n" not in str(caught.value)
    # 255 stays what it was in the other masks.
    for path in (plain / "masks/train").glob("[ac].png"):
        Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), SIZE)).save(path)
    assert len(DataSource(str(plain), ignore_label=200).open("train")[0].class_map.names) == 3
    (plain / "classes.txt").write_text("\n".join(f"name {index}" for index in range(201)))
    assert len(DataSource(str(plain)).open("train")[0].class_map.names) == 201


def write_map(folder, ids):
    path = folder / "map.json"
    path.write_text(json.dumps(ids))
    return path


def test_class_maps_join_and_leave_out(plain):
    path = write_map(plain, {"0": "thing", "1": None, "2": "thing", "255": None})
    (data,) = DataSource(str(plain), class_map=str(path)).open("train")
    assert data.class_map.names == ["thing"]
    assert data.read_labels(0).flatten()[:4].tolist() == [0, IGNORE, 0, IGNORE]


def test_names_in_a_file(plain):
    (plain / "classes.txt").write_text("sky\nroad\ncar\n")
    assert DataSource(str(plain)).open("train")[0].class_map.names == ["sky", "road", "car"]
    (plain / "classes.txt").write_text("sky\nsky\n")
    with pytest.raises(DatasetError, match="names 'sky' twice"):
        DataSource(str(plain)).open("train")


def test_names_that_ids_cannot_hold(plain):
    names = [f"class {index}" for index in range(300)]

    def classes(count, **options):
        (plain / "classes.txt").write_text("\n".join(names[:count]))
        return len(DataSource(str(plain), **options).open("train", check=False)[0].class_map.names)

    assert classes(255) == 255
    assert classes(254, reduce_zero_label=True) == 254
    assert classes(255, reduce_zero_label=True, ignore_label=0) == 255
    assert classes(256, ignore_label=7) == 255
    for count, options, first in ((256, {}, 0), (300, {"ignore_label": 7}, 0), (255, {"reduce_zero_label": True}, 1)):
        with pytest.raises(DatasetError, match=rf"^{count} classes are too many; their ids would run from {first} on"):
            classes(count, **options)
    with pytest.raises(DatasetError, match="256 classes are too many; allowed are 255"):
        ClassMap(dict(enumerate(names[:256])))


def spoil_size(root):
    for name in "ab":
        Image.fromarray(np.zeros((30, 41), np.uint8)).save(root / f"masks/train/{name}.png")


def spoil_ids(root):
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    labels = np.zeros(SIZE, np.uint8)
    labels[0, :7] = 9
    for name in "bc":
        Image.fromarray(labels).save(root / f"masks/train/{name}.png")


def spoil_pairs(root):
    (root / "masks/train/b.png").unlink()


def spoil_images(root):
    (root / "images/train/b.jpg").unlink()


def spoil_bits(root):
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(root / "masks/train/a.png")


def spoil_colors(root):
    Image.fromarray(noise(*SIZE)).save(root / "masks/val/a.png")


def spoil_one_bit(root):
    Image.fromarray(np.zeros(SIZE, bool)).save(root / "masks/val/a.png")


def write_gray_png(path, ids, bits):
    """A gray PNG of few bits, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    digits = (ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in digits)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def spoil_two_bits(root):
    write_gray_png(root / "masks/val/a.png", np.ones(SIZE, np.uint8), 2)


def spoil_four_bits(root):
    write_gray_png(root / "masks/val/a.png", np.ones(SIZE, np.uint8), 4)


def spoil_bytes(root):
    path = root / "masks/val/a.png"
    path.write_bytes(path.read_bytes()[:60])


def spoil_image_bytes(root):
    (root / "images/val/a.jpg").write_bytes(b"nothing")


def empty(root):
    for path in [*(root / "images").rglob("*.jpg"), *(root / "masks").rglob("*.png")]:
        path.unlink()


def remove_masks(root):
    (root / "masks").rename(root / "other")


def ignore_all(root):
    for path in (root / "masks").rglob("*.png"):
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"a has a mask of another size than the image \(41x30 for .* 40x30\), and so do 1 more \(b\)"),
        (spoil_ids, r"none of the 3 classes: 9 \(14 pixels in 2 masks: b, c\)"),
        (spoil_pairs, r"b has no mask in .*masks/train"),
        (spoil_images, r"b has a mask but no image in .*images/train"),
        (spoil_bits, "a has more than 8 bits a pixel; save ids"),
        (spoil_colors, r"a has colors \(RGB\) in place of ids"),
        (spoil_one_bit, "a has 1 bit a pixel"),
        (spoil_two_bits, "a has 2 gray bits a pixel, which read as 0, 85, 170 and so on; save it as an 8-bit index"),
        (spoil_four_bits, "a has 4 gray bits a pixel, which read as 0, 17, 34 and so on; save it as an 8-bit index"),
        (spoil_bytes, "a has a mask that cannot be read"),
        (spoil_image_bytes, "a has an image that cannot be read"),
        (empty, "no images in .*images/train"),
        (remove_masks, r"has no train split in this layout \(images/train with masks/train\)"),
        (ignore_all, "no mask has a pixel that counts"),
    ],
)
def test_faults_are_told_in_one_line(spoil, message, plain):
    spoil(plain)
    with pytest.raises(DatasetError, match=message) as caught:
        DataSource(str(plain)).open("train", "val")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, "a has a mask of another size than the image (41x30 for an image of 40x30), and so do 1 more (b)"),
        (spoil_ids, "ids that are none of the 3 classes: 9 (14 pixels in 2 masks: b, c); map them with --class_map"),
        (spoil_bits, "a has more than 8 bits a pixel; save ids from 0 to 255 as an 8-bit index PNG"),
        (spoil_colors, "a has colors (RGB) in place of ids; save the id of each color as an 8-bit index PNG"),
        (
            spoil_four_bits,
            "a has 4 gray bits a pixel, which read as 0, 17, 34 and so on; save it as an 8-bit index PNG",
        ),
        (spoil_pairs, "b has no mask in "),
        (spoil_images, "b has a mask but no image in "),
    ],
)
def test_training_refuses_faults_before_the_backbone_is_loaded(spoil, message, plain, tmp_path, monkeypatch, capsys):
    def load(*arguments, **options):
        pytest.fail("the backbone is loaded")

    monkeypatch.setattr("sail_encoder.backbones.registry.load_backbone", load)
    spoil(plain)
    for mode in ("online", "cached"):
        out = tmp_path / f"out {mode}"
        assert main(["segment", "train", str(plain), "--out", str(out), "--mode", mode, "--overlays", "0"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"sail: {message}")
        assert not out.exists()


def test_all_faults_are_told_at_once(plain):
    for spoil in (spoil_size, spoil_colors, spoil_image_bytes):
        spoil(plain)
    Image.fromarray(noise(*SIZE)).save(plain / "masks/val/b.png")
    with pytest.raises(DatasetError, match=r"another size.*; a has an image that cannot be read .*; b has colors"):
        DataSource(str(plain)).open("train", "val")


def test_other_mistakes(plain, tmp_path):
    with pytest.raises(DatasetError, match="no folder"):
        DataSource(str(tmp_path / "nowhere")).open("train")
    with pytest.raises(DatasetError, match="is no class map"):
        DataSource(str(plain), class_map=str(plain / "none.json")).open("train")
    with pytest.raises(DatasetError, match="maps 300: x; ids run from 0 to 255"):
        DataSource(str(plain), class_map=str(write_map(plain, {"300": "x"}))).open("train")
    with pytest.raises(DatasetError, match=r"map\.json names no class"):
        DataSource(str(plain), class_map=str(write_map(plain, {"0": None}))).open("train")
    for options in ({"reduce_zero_label": True}, {"ignore_label": 0}):
        with pytest.raises(
            DatasetError, match="have no effect beside it; leave them out, and map these ids to null in x"
        ):
            DataSource(str(plain), class_map="x", **options)
    for label in (-1, 256):
        with pytest.raises(DatasetError, match=f"--ignore_label cannot be {label}; allowed is 0 to 255"):
            DataSource(str(plain), ignore_label=label)
    (plain / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"classes.txt cannot be read as text .*; save it as UTF-8"):
        DataSource(str(plain)).open("train")
    (plain / "classes.txt").unlink()
    ade20k(tmp_path)
    with pytest.raises(DatasetError, match="has a class map of its own"):
        DataSource(str(tmp_path), "ade20k", reduce_zero_label=True).open("train")
    with pytest.raises(DatasetError, match="the classes are not known"):
        DataSource(str(plain)).open("train", check=False)
    put_list(tmp_path / "VOC2012", "ImageSets/Segmentation/train.txt", "there", "gone")
    put(tmp_path / "VOC2012", "JPEGImages/there.jpg", "SegmentationClass/there.png")
    with pytest.raises(DatasetError, match="gone has no image in"):
        DataSource(str(tmp_path), "voc2012").open("train")


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_pngs_of_few_bits_are_read_by_nothing_but_palettes(bits, plain):
    path, ids = plain / "masks/train/a.png", np.resize(np.arange(3, dtype=np.uint8), SIZE)
    write_gray_png(path, ids, bits)
    assert np.asarray(Image.open(path)).max() == 2 * 255 // (2**bits - 1)
    (plain / "classes.txt").write_text("sky\nroad\ncar\n")
    (data,) = DataSource(str(plain)).open("train", check=False)
    with pytest.raises(DatasetError, match=rf"a\.png has {bits} gray bits a pixel"):
        data.read_labels(0)
    indexed = Image.fromarray(ids).convert("P")
    indexed.putpalette(list(range(48)))
    indexed.save(path, bits=bits)
    assert Image.open(path).tile[0][3] == f"P;{bits}"
    np.testing.assert_array_equal(data.read_labels(0), ids)


def test_links_in_circles_are_not_followed(plain):
    for kind in ("images", "masks"):
        (plain / kind / "train/again").symlink_to(plain / kind / "train")
        (plain / kind / "more").mkdir()
        (plain / kind / "train/more").symlink_to(plain / kind / "more")
    put(plain, "images/more/d.jpg", "masks/more/d.png")
    put(plain, "images/train/.hidden/e.jpg", "masks/train/.hidden/e.png")
    names = [sample.name for sample in DataSource(str(plain)).open("train")[0].samples]
    assert names == ["a", "b", "c", "more/d"]


def test_folders_that_cannot_be_read_are_told(plain, monkeypatch):
    closed = plain / "images/train/closed"
    closed.mkdir()

    def scandir(folder, scandir=os.scandir):
        if str(folder) == str(closed):
            raise PermissionError(13, "Permission denied", str(closed))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"images/train/closed cannot be read \(Permission denied\); change its p"):
        DataSource(str(plain)).open("train")


def test_what_the_check_would_have_found_is_told_while_reading(plain):
    spoil_ids(plain)
    (data,) = DataSource(str(plain)).open("train", check=False)
    with pytest.raises(DatasetError, match=r"b.png has ids that the class map does not know: 9"):
        data.read_labels(1)


def test_colors_are_those_of_pascal_voc():
    colors = palette(VOC2012)
    assert colors[0].tolist() == [0, 0, 0]
    assert colors[1].tolist() == [128, 0, 0]
    assert colors[15].tolist() == [192, 128, 128]
    assert len({tuple(color) for color in palette([str(i) for i in range(171)])}) == 171


def test_class_map_numbers_classes_by_their_first_id():
    table = ClassMap({3: "b", 1: "a", 7: "a", 0: None}).table
    assert (table[1], table[3], table[7], table[0], table[2]) == (0, 1, 0, IGNORE, -1)
