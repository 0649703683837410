"""`sail extract --engine ray`: the shards of a run as tasks on a Ray cluster, one for each GPU."""

import importlib
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_encoder.extraction.workers import check_all_done, start_worker
from sail_encoder.images.sources import ImageFile
from sail_encoder.io.errors import UserError
from sail_encoder.io.hub import HF
from sail_encoder.io.remote import is_remote
from sail_encoder.io.signals import Interrupt
from sail_encoder.store.shares import Share

if TYPE_CHECKING:
    import torch

_RETRIES = 3
"""How often a share is begun again when its machine is lost; each time it goes on where it was."""

_LOOK_EVERY = 0.2
"""Seconds."""


@dataclass(frozen=True)
class Cluster:
    """Offer of a Ray cluster.

    Attributes:
        tasks: How many shares run at once: one for each GPU, or for each machine where there is no GPU.
        gpus: GPUs of each.
        cpus: Processor cores of each.
    """

    tasks: int
    gpus: int
    cpus: int

    @property
    def device(self) -> "torch.device":
        """The device of a share; Ray shows each task its own GPU alone."""
        import torch

        return torch.device("cuda" if self.gpus else "cpu")

    @classmethod
    def of(cls, nodes: Sequence[dict[str, float]]) -> "Cluster":
        """Divides machines, given by their resources as Ray names them.

        Raises:
            UserError: If there is no processor.
        """
        cores = [math.floor(node.get("CPU", 0)) for node in nodes]
        gpus = [math.floor(node.get("GPU", 0)) for node in nodes]
        if any(gpus):
            shares = (cpu // gpu for cpu, gpu in zip(cores, gpus, strict=True) if gpu)
            return cls(sum(gpus), 1, min(shares))
        if not any(cores):
            raise UserError("the Ray cluster offers neither GPUs nor processors; start its nodes with some")
        working = [count for count in cores if count]
        return cls(len(working), 0, min(working))


def check_devices(devices: str) -> None:
    """Makes sure that the devices asked for are `auto`, the only choice on a cluster, and that Ray is there.

    Raises:
        UserError: If not.
    """
    if devices != "auto":
        raise UserError(f"--devices {devices} names devices of this machine, --engine ray takes all of the cluster's")
    _import_ray()


def connect() -> Cluster:
    """Joins the cluster that RAY_ADDRESS names or that runs on this machine, or else makes this machine one.

    Raises:
        UserError: If the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _import_ray()
    try:
        ray.init(ignore_reinit_error=True, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster: {error}; see RAY_ADDRESS") from None
    return Cluster.of([node["Resources"] for node in ray.nodes() if node["Alive"]])


def extract_on_ray(
    cluster: Cluster, part: Share, request: dict[str, Any], images: Sequence[ImageFile], folder: Path
) -> int:
    """Runs `sail extract` in tasks on the cluster; they end with this process.

    Args:
        cluster: Where to run.
        part: Which part of the images all of them do together.
        request: The arguments of `extract`, without device and shard; each machine reads and writes the same paths.
        images: The images of that part.
        folder: Where the features go.

    Returns:
        The highest exit status.
    """
    ray = _import_ray()
    task = ray.remote(num_gpus=cluster.gpus, num_cpus=cluster.cpus, max_retries=_RETRIES, scheduling_strategy="SPREAD")(
        run_share
    )
    request = with_absolute_paths(request)
    running: list[Any] = []

    def cancel() -> None:
        for share in running:
            ray.cancel(share)

    interrupt = Interrupt(cancel)
    with interrupt:
        running += [task.remote(request, str(cluster.device), str(share)) for share in part.split(cluster.tasks)]
        statuses = [_status(ray, share) for share in running]
    return interrupt.status or check_all_done(max(statuses), images, folder)


def with_absolute_paths(request: dict[str, Any]) -> dict[str, Any]:
    """The same arguments for a process with another working folder."""
    prefix = HF if request["model"].startswith(HF) else ""
    model = request["model"].removeprefix(prefix)
    model = prefix + (os.path.abspath(model) if os.path.isdir(model) else model)
    sources = [path if is_remote(path) else os.path.abspath(path) for path in request["source"]]
    out = request["out"] if is_remote(request["out"]) else os.path.abspath(request["out"])
    return {**request, "source": sources, "out": out, "model": model}


def run_share(request: dict[str, Any], device: str, share: str) -> int:
    """One task: a share of the images in a process of its own, as on a machine with several devices."""
    worker = start_worker(request, device, Share.parse(share))
    with worker.process:
        try:
            # Ray interrupts Python, which a wait for the process would not notice.
            while worker.process.poll() is None:
                time.sleep(_LOOK_EVERY)
        except KeyboardInterrupt:
            worker.tell(signal.SIGTERM)
        return worker.conclude()


def _status(ray: Any, share: Any) -> int:
    try:
        return int(ray.get(share))
    except ray.exceptions.TaskCancelledError:
        return 128 + signal.SIGINT
    except ray.exceptions.RayError as error:
        print(f"a share was lost: {error}; the same command goes on", file=sys.stderr)
        return 2


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise UserError("--engine ray needs Ray: pip install ray, on every machine") from None
