"""One process a device: what each of them may come to, and what is said of it."""

import io
import json
import subprocess
import sys

import pytest
from helpers import save_images

from sail_encoder.commands import worker
from sail_encoder.commands.extract import extract
from sail_encoder.extraction import workers
from sail_encoder.images.sources import ImageFile
from sail_encoder.store.index import ImageStates, write_index
from sail_encoder.store.reading import FeatureFolder
from sail_encoder.store.records import Record
from sail_encoder.store.shares import Share


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture
def run(small_checkpoint, photos, tmp_path):
    """Extracts the photographs on two devices."""

    def run_extract(source=None, **options):
        settings = {"model": str(small_checkpoint), "devices": "cpu,cpu", **options}
        return extract(source or [str(photos)], str(tmp_path / "out"), **settings)

    return run_extract


def test_a_process_that_is_killed_is_told_and_the_run_goes_on(run, monkeypatch, tmp_path, capfd):
    start = workers.start_worker

    def start_and_kill(request, device, share):
        worker = start(request, device, share)
        if share.index == 1:
            worker.process.kill()
        return worker

    monkeypatch.setattr(workers, "start_worker", start_and_kill)
    assert run() == 128 + 9
    errors = capfd.readouterr().err
    assert "shard 1/2 on cpu was killed by signal 9 (SIGKILL); the same command goes on" in errors
    assert "of 12 images are not done; the same command goes on" in errors
    assert run(devices="cpu") == 0
    assert len(FeatureFolder(tmp_path / "out").entries) == 12


def test_more_sources_than_a_command_line_holds(run, photos, tmp_path):
    sources = [f"{photos}/{'./' * 1000}{index % 12:03d}.png" for index in range(1_200)]
    assert sum(map(len, sources)) > 2**21
    assert run(sources) == 0
    assert len(FeatureFolder(tmp_path / "out").entries) == 12
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["runs"]) == 2


@pytest.mark.parametrize(
    ("ending", "status", "printed"),
    [
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(1)", 1, ""),
        (f"raise SystemExit({worker.CRASHED})", 2, "shard 1/2 on cpu has crashed; the same command goes on\n"),
        (
            "import os; os.kill(os.getpid(), 15)",
            143,
            "shard 1/2 on cpu was killed by signal 15 (SIGTERM); the same command goes on\n",
        ),
    ],
)
def test_how_a_process_may_end(ending, status, printed, capsys):
    process = subprocess.Popen([sys.executable, "-c", ending])
    assert workers.Worker(Share(1, 2), "cpu", process).conclude() == status
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize(
    ("request_", "status", "printed"),
    [
        ({"source": ["nowhere"], "out": "o"}, 2, "sail: no file or folder nowhere\n"),
        ({"unknown": 1}, worker.CRASHED, "TypeError: extract() got an unexpected keyword argument 'unknown'\n"),
    ],
)
def test_a_process_tells_mistakes_from_bugs(request_, status, printed, monkeypatch, capsys):
    monkeypatch.setattr(worker, "_end_with_the_first", int)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(request_).encode())))
    assert worker.main() == status
    errors = capsys.readouterr().err
    assert errors.endswith(printed)
    assert ("Traceback" in errors) == (status != 2)


def test_no_run_that_lacks_images_is_called_done(tmp_path, capsys):
    images = [ImageFile(f"{index}.jpg", "", 1) for index in range(3)]
    rows = [Record("0.jpg", 1, file="features/0.jpg.npy"), Record("1.jpg", 1), Record("2.jpg", 1, error="broken")]
    states = ImageStates(images, bool)
    states.note(rows)
    write_index(tmp_path, states)
    assert workers.check_all_done(1, images, tmp_path) == 2
    assert capsys.readouterr().err == "1 of 3 images are not done; the same command goes on\n"
    assert workers.check_all_done(1, [images[0], images[2]], tmp_path) == 1
