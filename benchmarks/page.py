"""The page under use: how long a click takes until its map is there, and what uploads leave in memory.

    python -m benchmarks.page                     # sail-tiny, on this machine's processor; about two minutes
    python -m benchmarks.page --uploads 1000

A server is started as people start it, and spoken to over HTTP in the words of gradio's own client. A click is timed
from its request to the answer with the similarity map, once the image is encoded; memory is the server's resident set.
"""

import argparse
import io
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_HEIGHT, _WIDTH = 480, 640
_MIB = 2**20


class Visitor:
    """A session with the page, over HTTP.

    Args:
        address: Where the page is.
    """

    def __init__(self, address: str) -> None:
        self.address, self.session = address, uuid.uuid4().hex
        page = self._get("/config")
        self.events = {(target[0], target[1]): one["id"] for one in page["dependencies"] for target in one["targets"]}
        self.ids = {part["props"].get("elem_id"): part["id"] for part in page["components"]}
        [self.begin] = [one["id"] for one in page["dependencies"] if one["targets"][0][1] == "load"]

    def call(self, function: int, data: list[Any], event: dict[str, Any] | None = None) -> Any:
        """Triggers an event, and returns what it changes."""
        body = {"fn_index": function, "data": data, "session_hash": self.session, "event_data": event}
        self._post("/gradio_api/queue/join", json.dumps(body).encode(), "application/json")
        query = urllib.parse.urlencode({"session_hash": self.session})
        with urllib.request.urlopen(f"{self.address}/gradio_api/queue/data?{query}") as stream:
            for line in stream:
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"the page failed: {message}")
                    return message["output"]
        raise RuntimeError("the page ended its answer early")

    def upload(self, name: str, content: bytes) -> None:
        """Uploads an image and looks at it."""
        answer = self._post(f"/photos?name={name}", content, "application/octet-stream")
        self.call(self.events[self.ids["first-upload"], "upload"], [None], answer)

    def click(self, x: float, y: float) -> float:
        """Clicks at a point, as shares of width and height; returns the seconds until its map is there."""
        start = time.perf_counter()
        output = self.call(self.events[self.ids["photo"], "click"], [None], {"x": x, "y": y})
        seconds = time.perf_counter() - start
        if "Similarity of all patches" not in json.dumps(output):
            raise RuntimeError("a click gave no map")
        return seconds

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path) as answer:
            return json.load(answer)

    def _post(self, path: str, content: bytes, kind: str) -> Any:
        request = urllib.request.Request(self.address + path, content, {"content-type": kind})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def serve(model: str) -> Iterator[tuple[str, int]]:
    """Serves the page, and gives its address and the number of its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sail_cli", "demo", "--page", "--model", model, "--port", str(port)]
    with subprocess.Popen(command) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server)
            yield address, server.pid
        finally:
            server.terminate()


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server has ended")


def resident_mib(process: int) -> float:
    """Resident set of a process in MiB, on Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MIB


def photograph(seed: int) -> bytes:
    """A file of smooth random colors, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sail-tiny")
    parser.add_argument("--clicks", type=int, default=50)
    parser.add_argument("--uploads", type=int, default=200)
    options = parser.parse_args()
    with serve(options.model) as (address, process):
        visitor = Visitor(address)
        visitor.call(visitor.begin, [])
        places = np.random.default_rng(0).random((options.clicks, 2))
        seconds = [visitor.click(float(x), float(y)) for x, y in places]
        print(f"a click: median {statistics.median(seconds):.3f} s, slowest of {len(seconds)} {max(seconds):.3f} s")
        for number in range(options.uploads + 1):
            if number % max(1, options.uploads // 10) == 0:
                print(f"{number:4d} uploads: {resident_mib(process):,.0f} MiB", flush=True)
            if number < options.uploads:
                visitor.upload(f"{number}.png", photograph(number))


if __name__ == "__main__":
    main()
