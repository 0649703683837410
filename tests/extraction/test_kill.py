"""Killed at any moment and resumed, a run leaves what an uninterrupted one leaves, byte for byte."""

import json
import multiprocessing
import os
import pty
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers import save_images

from sail_encoder.commands.extract import extract
from sail_encoder.io.errors import StoreError
from sail_encoder.io.json_lines import LineLog

KILLS_AT_WORK = 8
KILLS_AT_THE_END = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = save_images(tmp_path_factory.mktemp("photos"), 90, sides=(50, 150))
    (folder / "045_broken.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def server():
    """Starts processes that have imported everything already, so that kills fall into the work."""
    context = multiprocessing.get_context("forkserver")
    modules = [
        "sail_encoder.commands.extract",
        "sail_encoder.backbones.sail",
        "sail_encoder.extraction.run",
        "pyarrow.parquet",
    ]
    context.set_forkserver_preload(modules)
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


def options(out, pool):
    """A budget that makes a pack of an image or two, so that there are many moments at which to be killed."""
    return {"out": str(out), "pool": pool, "token_budget": 40, "readers": 2, "devices": "cpu"}


def run(source, out, pool):
    os.environ["OMP_NUM_THREADS"] = "1"
    raise SystemExit(extract([str(source)], **options(out, pool)))


def snapshot(folder):
    """All files but the report and the journal, whose numbers and lines tell of the interruptions."""
    skip = {"run.json", "journal.jsonl"}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in skip)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lines(folder):
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_behind(process, folder, count, delay):
    """Kills a run a moment after its journal has so many lines; returns how many it had in the end."""
    process.start()
    while lines(folder) < count and process.exitcode is None:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    return lines(folder)


@pytest.mark.parametrize("pool", ["none", "mean"])
def test_killed_at_random_moments(source, server, tmp_path, pool):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def process(out):
        return server.Process(target=run, args=(source, out, pool))

    uninterrupted = process(whole)
    uninterrupted.start()
    uninterrupted.join()
    assert uninterrupted.exitcode == 1
    rng, packs = random.Random(0), lines(whole)
    for _ in range(KILLS_AT_WORK):
        before = lines(killed)
        after = kill_behind(process(killed), killed, before + rng.randint(1, 3), rng.uniform(0, 0.01))
        assert before < after < packs, "the kill has to fall into the work"
    for _ in range(KILLS_AT_THE_END):
        kill_behind(process(killed), killed, packs, rng.uniform(0, 0.05))
    last = process(killed)
    last.start()
    last.join()
    assert last.exitcode == 1
    expected, found = snapshot(whole), snapshot(killed)
    assert list(found) == list(expected)
    assert found == expected
    reports = json.loads((killed / "run.json").read_text())["runs"]
    assert len(reports) <= KILLS_AT_THE_END + 1, "a run that was killed at work reports nothing"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_cleanly(source, tmp_path, number):
    """What was begun is saved, the journal is whole, and the same command goes on."""
    flags = [f"--{name}={value}" for name, value in options(tmp_path / "out", "none").items()]
    command = [sys.executable, "-m", "sail_cli", "extract", str(source), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    journal = tmp_path / "out" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    lines = journal.read_text().splitlines()
    done = [record for line in lines for record in json.loads(line) if record["file"]]
    assert 0 < len(done) < 90
    for record in done:
        assert (tmp_path / "out" / record["file"]).stat().st_size == record["file_bytes"]
    assert extract([str(source)], **options(tmp_path / "out", "none")) == 1
    assert len(list((tmp_path / "out" / "features").iterdir())) == 90


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_processes_of_all_devices(source, tmp_path, number):
    """A terminal sends Ctrl-C to all processes at once, `kill` sends SIGTERM to the first alone."""
    terminal, keyboard = pty.openpty()
    flags = [f"--{name}={value}" for name, value in {**options(tmp_path / "out", "none"), "devices": "cpu,cpu"}.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "sail_cli", "extract", str(source), *flags],
        stdin=keyboard,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    journals = [tmp_path / "out" / f"journal_{index}_of_2.jsonl" for index in range(2)]
    while process.poll() is None and not all(path.exists() and path.stat().st_size for path in journals):
        time.sleep(0.005)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate()
    os.close(terminal)
    os.close(keyboard)
    assert process.returncode == 128 + number, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    done = [record for path in journals for line in path.read_text().splitlines() for record in json.loads(line)]
    assert len(done) < 91


@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]])
def test_the_processes_of_all_devices_end_with_the_first(source, tmp_path, numbers):
    out = tmp_path / "out"
    flags = [f"--{name}={value}" for name, value in {**options(out, "none"), "devices": "cpu,cpu"}.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "sail_cli", "extract", str(source), *flags],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    journals = [out / f"journal_{index}_of_2.jsonl" for index in range(2)]
    while process.poll() is None and not all(path.exists() and path.stat().st_size for path in journals):
        time.sleep(0.005)
    for number in numbers:
        process.send_signal(number)
    process.wait()
    for journal in journals:
        wait_for_end(journal)
    done = [record for path in journals for line in path.read_text().splitlines() for record in json.loads(line)]
    assert len(done) < 91


def wait_for_end(journal, seconds=60):
    """Waits until no process writes a journal any more."""
    for _ in range(seconds * 50):
        try:
            return LineLog(journal).close()
        except StoreError:
            time.sleep(0.02)
    pytest.fail("a process goes on without the first")
