"""Extraction on a Ray cluster: two machines, both of them this one."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers import save_images

from sail_encoder.commands.extract import extract
from sail_encoder.extraction import ray as on_ray
from sail_encoder.extraction.workers import Worker
from sail_encoder.io.errors import UserError
from sail_encoder.store.reading import FeatureFolder


@pytest.mark.parametrize(
    ("nodes", "cluster"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}], (2, 0, 4)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 32.0}], (12, 1, 4)),
        ([{"CPU": 0.0, "GPU": 1.0}], (1, 1, 0)),
    ],
)
def test_what_a_cluster_offers_is_divided(nodes, cluster):
    assert on_ray.Cluster.of(nodes) == on_ray.Cluster(*cluster)
    assert str(on_ray.Cluster(*cluster).device) == ("cuda" if cluster[1] else "cpu")


def test_a_cluster_without_processors_is_refused():
    with pytest.raises(UserError, match="neither GPUs nor processors"):
        on_ray.Cluster.of([{"CPU": 0.0}])


def test_ray_that_is_not_there_and_devices_of_this_machine_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--devices cpu names devices of this machine"):
        extract([str(tmp_path)], str(tmp_path / "out"), devices="cpu", engine="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray: pip install ray"):
        extract([str(tmp_path)], str(tmp_path / "out"), engine="ray")


def test_paths_are_for_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    request = {"source": ["a.jpg", "*.tar"], "out": "out", "model": "model", "norm": True}
    here = str(tmp_path)
    expected = {"source": [f"{here}/a.jpg", f"{here}/*.tar"], "out": f"{here}/out", "model": f"{here}/model"}
    assert on_ray.with_absolute_paths(request) == {**expected, "norm": True}
    assert on_ray.with_absolute_paths({**request, "model": "sail-tiny"})["model"] == "sail-tiny"
    named = {**request, "model": f"hf/{request['model']}"}
    assert on_ray.with_absolute_paths(named)["model"] == f"hf/{expected['model']}"


def test_a_share_that_is_cancelled_ends_its_process_cleanly(monkeypatch):
    ends = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print(flush=True); time.sleep(60)"
    looked_at = threading.Event()

    class Process(subprocess.Popen):
        def poll(self):
            code = super().poll()
            looked_at.set()
            return code

    process = Process([sys.executable, "-c", ends], stdout=subprocess.PIPE)
    monkeypatch.setattr(on_ray, "start_worker", lambda request, device, share: Worker(share, device, process))

    def cancel():
        process.stdout.readline()
        looked_at.wait()
        os.kill(os.getpid(), signal.SIGINT)

    # A shell lets what it runs in the background ignore SIGINT.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=cancel).start()
        assert on_ray.run_share({}, "cpu", "0/1") == 143
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_machines_share_a_run(small_checkpoint, tmp_path, monkeypatch):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    ray = pytest.importorskip("ray")
    settings = {"source": [str(save_images(tmp_path / "photos", 12))], "model": str(small_checkpoint)}
    assert extract(out=str(tmp_path / "here"), **settings) == 0
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert extract(out=str(tmp_path / "there"), engine="ray", **settings) == 0
    finally:
        ray.shutdown()
        cluster.shutdown()
    here, there = FeatureFolder(tmp_path / "here"), FeatureFolder(tmp_path / "there")
    files = [entry.file for entry in here.entries]
    assert files == [entry.file for entry in there.entries]
    assert all((tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes() for file in files)
    runs = json.loads((tmp_path / "there" / "run.json").read_text())["runs"]
    assert {run["shard"] for run in runs} == {"0/2", "1/2"}
