"""E7: threads and processes are as many as the cores that a process may use, not as the machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import noise, save_images
from PIL import Image

import sail_cli

COUNTING = """
import json, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
# A machine of many cores, of which this process may use one.
os.cpu_count = lambda: 192
most, make = [0], ThreadPoolExecutor.__init__
def count(pool, max_workers=None, *rest, **options):
    most[0] = max(most[0], max_workers or 192)
    make(pool, max_workers, *rest, **options)
ThreadPoolExecutor.__init__ = count
from sail_cli import main
status = main(sys.argv[1:])
import torch
print(json.dumps([status, most[0], torch.get_num_threads()]))
"""


def counted(*arguments):
    """Status, the largest pool of threads, and the threads of PyTorch, of a command on one core."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(Path(sail_cli.__file__).parent), *sys.path])}
    command = ["taskset", "-c", "0", sys.executable, "-c", COUNTING, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def segmentation(tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(noise(56, 56, number)).save(tmp_path / "data" / "images" / split / f"{number}.png")
            mask = np.repeat(np.arange(2, dtype=np.uint8), 28 * 56).reshape(56, 56)
            Image.fromarray(mask).save(tmp_path / "data" / "masks" / split / f"{number}.png")
    return tmp_path / "data"


MODEL = ("--model", "raw/14")


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is set with taskset")
def test_e7_extract(tmp_path):
    save_images(tmp_path / "photos", 3)
    found, errors = counted("extract", tmp_path / "photos", "--out", tmp_path / "out", *MODEL, "--devices", "cpu")
    status, pool, threads = found
    assert status == 0, errors
    assert pool <= 16
    assert threads == 1


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is set with taskset")
def test_e7_segment_train(tmp_path, segmentation):
    steps = ("--steps", "2", "--warmup", "0", "--crop", "28", "--batch_size", "2", "--device", "cpu")
    (status, pool, threads), errors = counted(
        "segment", "train", segmentation, "--out", tmp_path / "out", *MODEL, *steps
    )
    assert status == 0, errors
    assert pool <= 16
    assert threads == 1
