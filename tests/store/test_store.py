import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import parquet

from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.io.json_lines import LineLog
from sail_encoder.io.runs import check_settings
from sail_encoder.store import sinks
from sail_encoder.store.index import list_undone
from sail_encoder.store.reading import FeatureFolder
from sail_encoder.store.records import Record, read_journals
from sail_encoder.store.shares import Share
from sail_encoder.store.store import FeatureStore, remove_run

SETTINGS = {"layers": [5], "size": "native", "dtype": "float16", "pool": "mean"}


def images(count, size=10):
    return [ImageFile(f"d/{index:02d}.jpg", f"/nowhere/{index:02d}.jpg", size) for index in range(count)]


def results(part, pooled=False):
    """Records and arrays whose values name the image."""
    records = [Record(image.key, image.size, (2, 3), (20, 30), (28, 42)) for image in part]
    shape = (4,) if pooled else (2, 3, 4)
    return records, [np.full(shape, int(image.key[2:4]), np.float16) for image in part]


def journaled(folder):
    return {record.key: record for pack in read_journals(folder) for record in pack}


def read(folder, record):
    array = np.load(folder / record.file)
    return array if record.row is None else array[record.row]


@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_written_comes_back(tmp_path, pooled):
    listing = images(6)
    store = FeatureStore(tmp_path, SETTINGS, pooled)
    store.write(*results(listing[:4], pooled))
    broken = [Record(listing[4].key, 10, error="broken")]
    store.write(broken, [None])
    store.write(*results(listing[5:], pooled))
    store.finish(listing, {"images": 5})
    for image in (*listing[:4], listing[5]):
        assert (read(tmp_path, journaled(tmp_path)[image.key]) == int(image.key[2:4])).all()
    table = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["path"] for row in table] == [image.key for image in listing]
    assert [row["status"] for row in table] == ["done"] * 4 + ["failed", "done"]
    assert (table[0]["grid_height"], table[0]["grid_width"], table[0]["image_width"]) == (2, 3, 30)
    assert (tmp_path / "failures.csv").read_text().splitlines() == ["path,reason", "d/04.jpg,broken"]
    assert json.loads((tmp_path / "run.json").read_text())["runs"] == [{"images": 5}]
    assert not (tmp_path / ".work").exists()


def test_missing_images_come_in_stretches(tmp_path):
    listing = images(6)
    store = FeatureStore(tmp_path, SETTINGS)
    store.write(*results(listing[:2]))
    store.write(*results(listing[3:4]))
    store.close()
    again = FeatureStore(tmp_path, SETTINGS)
    assert [[image.key[2:4] for image in stretch] for stretch in again.missing(listing)] == [["02"], ["04", "05"]]


def test_a_pack_is_done_together_or_not_at_all(tmp_path):
    listing = images(4)
    store = FeatureStore(tmp_path, SETTINGS)
    store.write(*results(listing[:2]))
    store.write(*results(listing[2:]))
    store.finish(listing, {})
    (tmp_path / "features" / "d" / "01.jpg.npy").write_bytes(b"short")
    again = FeatureStore(tmp_path, SETTINGS)
    assert [[image.key[2:4] for image in stretch] for stretch in again.missing(listing)] == [["00", "01"]]


def test_a_changed_image_and_a_failed_one_are_done_again(tmp_path):
    listing = images(3)
    store = FeatureStore(tmp_path, SETTINGS)
    for image in listing[:2]:
        store.write(*results([image]))
    store.write([Record(listing[2].key, 10, error="broken")], [None])
    store.finish(listing, {})
    again = FeatureStore(tmp_path, SETTINGS)
    changed = [ImageFile(listing[0].key, listing[0].path, 11), *listing[1:]]
    assert [[image.key[2:4] for image in stretch] for stretch in again.missing(changed)] == [["00"], ["02"]]


def test_an_image_that_was_written_anew_is_done_again_even_if_it_is_as_large(tmp_path):
    first = [replace(image, modified=100) for image in images(3)]
    with FeatureStore(tmp_path, SETTINGS) as store:
        for image in first:
            store.write([replace(Record.begin(image), grid=(2, 3))], [np.zeros((2, 3, 4), np.float16)])
    journal = tmp_path / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    del lines[2][0]["modified"]  # as an earlier version has written it
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with FeatureStore(tmp_path, SETTINGS) as again:
        assert not again.missing(first)
        assert not again.missing(images(3)), "where nobody knows when an image was written, its size decides"
        later = [first[0], *(replace(image, modified=101) for image in first[1:])]
        assert again.missing(later) == [[later[1]]]


def test_a_lost_shard_is_done_again_under_a_new_name(tmp_path):
    listing = images(2)
    store = FeatureStore(tmp_path, SETTINGS, pooled=True)
    store.write(*results(listing, pooled=True))
    store.finish(listing, {})
    (tmp_path / "features_00000.npy").unlink()
    again = FeatureStore(tmp_path, SETTINGS, pooled=True)
    assert len(again.missing(listing)) == 1
    again.write(*results(listing, pooled=True))
    again.finish(listing, {})
    assert (read(tmp_path, journaled(tmp_path)["d/01.jpg"]) == 1).all()
    assert not FeatureStore(tmp_path, SETTINGS, pooled=True).missing(listing)


def test_shards_are_completed_at_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "SHARD_BYTES", 3 * 8)
    listing = images(8)
    store = FeatureStore(tmp_path, SETTINGS, pooled=True)
    for start in range(0, 8, 2):
        store.write(*results(listing[start : start + 2], pooled=True))
    store.finish(listing, {})
    assert [len(np.load(path)) for path in sorted(tmp_path.glob("features_*.npy"))] == [4, 4]
    for image in listing:
        assert (read(tmp_path, journaled(tmp_path)[image.key]) == int(image.key[2:4])).all()


def test_a_killed_shard_goes_on_behind_the_last_known_row(tmp_path):
    listing = images(4)
    store = FeatureStore(tmp_path, SETTINGS, pooled=True)
    store.write(*results(listing[:2], pooled=True))
    store.sink.write(*results(listing[2:3], pooled=True))
    store.close()
    again = FeatureStore(tmp_path, SETTINGS, pooled=True)
    assert [image.key for stretch in again.missing(listing) for image in stretch] == ["d/02.jpg", "d/03.jpg"]
    again.write(*results(listing[2:], pooled=True))
    again.finish(listing, {})
    assert np.load(tmp_path / "features_00000.npy")[:, 0].tolist() == [0, 1, 2, 3]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    with LineLog(path) as log:
        log.append([{"key": "a", "size": 1}])
    with path.open("a") as file:
        file.write('[{"key": "b"')
    assert [[record.key for record in pack] for pack in read_journals(tmp_path)] == [["a"]]
    with LineLog(path) as log:
        log.append([{"key": "c", "size": 1}])
        assert len(log.read()) == 2
    assert [[record.key for record in pack] for pack in read_journals(tmp_path)] == [["a"], ["c"]]


@pytest.mark.parametrize("content", ["my notes", "my\nnotes", "[1]\n[2", ""])
def test_opening_a_log_changes_nothing(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    os.utime(path, ns=(5, 5))
    with LineLog(path) as log:
        assert log.cut_off.decode() == content.rpartition("\n")[2]
    assert (path.read_text(), path.stat().st_mtime_ns) == (content, 5)


def test_a_line_that_could_not_be_finished_is_replaced_by_the_next(tmp_path, monkeypatch):
    with LineLog(tmp_path / "log.jsonl") as log:
        log.append(1)
        with monkeypatch.context() as full:
            full.setattr("sail_encoder.io.json_lines.append_all", half_of_it)
            with pytest.raises(OSError, match="No space left"):
                log.append("a long line")
        log.append(2)
        assert log.read() == [1, 2]


def test_a_log_holds_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"a \xff \xc3\xa9\n")
    with LineLog(tmp_path / "log.jsonl") as log:
        log.append(name)
        assert log.read() == [name]
    assert json.loads((tmp_path / "log.jsonl").read_text()) == name


def test_other_settings_are_refused_by_name(tmp_path):
    FeatureStore(tmp_path, SETTINGS).close()
    with pytest.raises(StoreError, match=r"layers was \[5\], now \[4\]"):
        FeatureStore(tmp_path, {**SETTINGS, "layers": [4]})
    with pytest.raises(StoreError, match="norm was None, now True"):
        check_settings(tmp_path, {**SETTINGS, "norm": True})
    check_settings(tmp_path, SETTINGS)


def test_a_run_that_raises_lets_go_of_the_folder(tmp_path):
    def write_and_raise():
        with FeatureStore(tmp_path, SETTINGS, pooled=True) as store:
            store.write(*results(images(1), pooled=True))
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError) as kept:
        write_and_raise()
    with FeatureStore(tmp_path, SETTINGS, pooled=True):
        assert journaled(tmp_path).keys() == {"d/00.jpg"}
    assert kept.value.__traceback__ is not None, "as a notebook keeps it, with all that its frames hold"


def test_two_runs_at_once_are_kept_apart(tmp_path):
    first = FeatureStore(tmp_path, SETTINGS)
    with pytest.raises(StoreError, match="another run is writing"):
        FeatureStore(tmp_path, SETTINGS)
    first.close()
    FeatureStore(tmp_path, SETTINGS).close()


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path):
    listing = images(2)
    store = FeatureStore(tmp_path, SETTINGS)
    store.write(*results(listing))
    store.finish(listing, {})
    mine = [tmp_path / name for name in ("mine.txt", "features/mine.txt", "features_of_mine.npy")]
    for path in mine:
        path.touch()
    with FeatureStore(tmp_path, SETTINGS), pytest.raises(StoreError, match="another run is writing"):
        remove_run(tmp_path)
    assert read(tmp_path, journaled(tmp_path)["d/01.jpg"]).any()
    remove_run(tmp_path)
    again = FeatureStore(tmp_path, {"layers": [1]})
    assert len(again.missing(listing)[0]) == 2
    assert all(path.exists() for path in mine)
    assert not (tmp_path / "features" / "d").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no run\.json"),
        ('{"id": 3}', r"run\.json is damaged, or of another program; use another --out"),
        ('{"settings": ', r"run\.json is damaged, or of another program; use another --out"),
        ('{"settings": {"lr": 1}}', r"run\.json is of another program, so it is not overwritten"),
    ],
)
def test_foreign_features_are_not_overwritten(tmp_path, content, message):
    mine = tmp_path / "features" / "mine.npy"
    mine.parent.mkdir()
    mine.touch()
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        remove_run(tmp_path)
    assert mine.exists()


@pytest.mark.parametrize("content", ['{"id": 3}', '{"settings": ', "[]"])
def test_a_foreign_run_file_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json is damaged, or of another program"):
        FeatureStore(tmp_path, SETTINGS)
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("line", ["{", '{"name": "a.png"}', '[{"unknown": 1}]', "3"])
def test_a_damaged_journal_is_one_line(tmp_path, line):
    with FeatureStore(tmp_path, SETTINGS) as store:
        store.write(*results(images(1)))
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write(f"{line}\n")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"journal\.jsonl line 2 is damaged, or of another program"):
            FeatureStore(tmp_path, SETTINGS)


def test_shards_share_the_images_and_the_last_one_writes_the_whole_index(tmp_path):
    listing = images(7)
    parts = [Share(index, 3) for index in range(3)]
    assert sorted(image.key for part in parts for image in part.of(listing)) == [image.key for image in listing]
    stores = [FeatureStore(tmp_path, SETTINGS, pooled=True, share=part) for part in parts]
    for part, store in zip(parts, stores, strict=True):
        store.write(*results(part.of(listing), pooled=True))
    for store in stores:
        store.finish(listing, {})
    table = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["path"] for row in table] == [image.key for image in listing]
    for row in table:
        assert (np.load(tmp_path / row["file"])[row["row"]] == int(row["path"][2:4])).all()
    assert not (tmp_path / ".work").exists()


def test_images_keep_their_part_where_others_are_added():
    few, many = images(20), images(99)
    for part in (Share(0, 2), Share(1, 3)):
        assert part.of(few) == [image for image in part.of(many) if image in few]
    assert sorted(image.key for half in Share(1, 3).split(2) for image in half.of(many)) == sorted(
        image.key for image in Share(1, 3).of(many)
    )


def test_parts_are_about_equal():
    listing = [ImageFile(f"images/{number:08d}.jpg", "", 1) for number in range(20_000)]
    sizes = [len(Share(index, 8).of(listing)) for index in range(8)]
    assert max(sizes) - min(sizes) < 0.15 * 2500


@pytest.mark.parametrize("pooled", [False, True])
def test_what_other_shards_have_to_do_is_pending(tmp_path, pooled):
    """Also rows that a killed shard has written into a file which is not complete."""
    listing = images(9)
    first, second = Share(0, 2), Share(1, 2)
    mine, theirs = second.of(listing), first.of(listing)
    with FeatureStore(tmp_path, SETTINGS, pooled, share=first) as killed:
        killed.write(*results(theirs[:1], pooled))
    with FeatureStore(tmp_path, SETTINGS, pooled, share=second) as store:
        store.write(*results(mine, pooled))
        left = theirs if pooled else theirs[1:]
        assert store.finish(listing, {})["pending_elsewhere"] == len(left) > 0
    table = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["path"] for row in table] == [image.key for image in listing]
    assert [row["path"] for row in table if row["status"] == "pending"] == [image.key for image in left]
    assert list_undone(tmp_path, listing) == left
    with pytest.raises(StoreError, match=f"{len(left)} of 9 images are pending; run the shards that are left"):
        FeatureFolder(tmp_path)


def test_a_whole_run_does_what_shards_have_left(tmp_path):
    listing = images(9)
    part = Share(0, 2)
    with FeatureStore(tmp_path, SETTINGS, pooled=True, share=part) as killed:
        killed.write(*results(part.of(listing), pooled=True))
    os.utime(tmp_path / "journal_0_of_2.jsonl", (1, 1))
    with FeatureStore(tmp_path, SETTINGS, pooled=True) as whole:
        assert whole.missing(listing) == [listing]
        whole.write(*results(listing, pooled=True))
        assert whole.finish(listing, {})["pending"] == 0
    assert FeatureFolder(tmp_path).matrix()[:, 0].tolist() == list(range(9))
    with FeatureStore(tmp_path, SETTINGS, pooled=True, share=part) as again:
        assert not again.missing(part.of(listing))


@pytest.mark.parametrize("text", ["1", "4/4", "-1/4", "a/b", "1/0", ""])
def test_shard_text(text):
    with pytest.raises(UserError, match="such as 0/4"):
        Share.parse(text)


def test_an_unwritable_name_fails_alone(tmp_path):
    store = FeatureStore(tmp_path, SETTINGS)
    long = ImageFile("x" * 254 + ".jpg", "/nowhere", 1)
    pack = store.write(*[[Record(long.key, 1), Record("d/01.jpg", 1)], [np.zeros((1, 1, 2))] * 2])
    assert [record.error is None for record in pack] == [False, True]
    assert "cannot be written" in pack[0].error


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_of_it(descriptor, data):
    content = bytes(memoryview(data).cast("B"))
    os.write(descriptor, content[: len(content) // 2])
    no_space()


def write_the_rest(store, listing, pooled):
    store.write(*results(listing[2:], pooled))
    store.finish(listing, {})


@pytest.mark.parametrize(
    ("pooled", "writer", "broken", "known"),
    [
        (True, "store.sinks.append_all", half_of_it, 2),
        (True, "store.sinks.npy_format.write_array_header_1_0", no_space, 4),
        (False, "store.sinks.npy_format.write_array_header_1_0", no_space, 2),
        (False, "io.json_lines.append_all", half_of_it, 2),
        (True, "io.json_lines.append_all", half_of_it, 2),
        (False, "store.store.write_index", no_space, 4),
        (True, "store.store.write_index", no_space, 4),
    ],
)
def test_a_full_disk_ends_in_one_line_and_the_folder_goes_on(tmp_path, monkeypatch, pooled, writer, broken, known):
    """Whatever is being written when the disk fills up: half of it may be there, and nothing is lost."""
    listing = images(4)
    with FeatureStore(tmp_path, SETTINGS, pooled) as store, monkeypatch.context() as full:
        store.write(*results(listing[:2], pooled))
        full.setattr(f"sail_encoder.{writer}", broken)
        with pytest.raises(
            StoreError, match=r"No space left on device, .* free; free some, then the same command goes on"
        ):
            write_the_rest(store, listing, pooled)
    assert sum(len(pack) for pack in read_journals(tmp_path)) == known
    with FeatureStore(tmp_path, SETTINGS, pooled) as again:
        todo = [image for stretch in again.missing(listing) for image in stretch]
        assert todo == listing[known:]
        again.write(*results(todo, pooled))
        again.finish(listing, {})
    for image in listing:
        assert (read(tmp_path, journaled(tmp_path)[image.key]) == int(image.key[2:4])).all()
    assert not (tmp_path / ".work").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(
        StoreError, match=r"cannot write .*/out: Permission denied; correct that or name another folder"
    ):
        FeatureStore(tmp_path / "out", SETTINGS)
