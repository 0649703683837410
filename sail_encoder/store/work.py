"""Folders of unfinished files, and whether those live who write there.

A lock tells that only where all machines see it. So each process says in `owner.json` on which machine it is and which
process, and touches that file every now and then; only what its owner has certainly left is deleted by others.
"""

import os
import re
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

from sail_encoder.io.files import read_json, write_json

BEAT = 20.0
"""Seconds from one sign of life to the next."""

DEAD_AFTER = 600.0
"""Seconds without one, after which a process on another machine counts as dead."""

_OWNER = "owner.json"
_NAME = re.compile(r"run(_\d+_of_\d+)?")


class WorkFolder:
    """The folder in which one process keeps unfinished files; while it is open, it shows that it lives.

    Args:
        path: The folder; made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / _OWNER, _describe(os.getpid()))
        self._closed = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                os.utime(self.path / _OWNER)
            # A file system that fails now and then must not end the run.
            except OSError:
                continue

    def close(self) -> None:
        """Ends the claim; what is unfinished stays."""
        if not self._closed.is_set():
            self._closed.set()
            self._beating.join()
            (self.path / _OWNER).unlink(missing_ok=True)

    def remove(self) -> None:
        """Deletes the folder and all in it."""
        self.close()
        self.remove_tree(self.path)

    @staticmethod
    def remove_tree(path: Path) -> None:
        """Deletes such a folder whose process has ended."""
        shutil.rmtree(path, ignore_errors=True)


def abandoned(work: Path) -> list[Path]:
    """Folders of unfinished files whose processes have certainly ended."""
    folders = [path for path in work.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return [path for path in folders if not _may_live(path)]


def living(work: Path) -> list[Path]:
    """Folders of unfinished files whose processes may be writing."""
    return [path for path in work.glob("run*") if path.is_dir() and _may_live(path)] if work.is_dir() else []


def _may_live(folder: Path) -> bool:
    owner = folder / _OWNER
    try:
        last_sign = owner.stat().st_mtime
        said = read_json(owner)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    if isinstance(said, dict) and said.get("machine") == _machine():
        return _describe(said.get("pid")) == said
    return _now(folder) - last_sign < DEAD_AFTER


def _now(folder: Path) -> float:
    """Time on the clock that the file system itself goes by, which may be another machine's."""
    probe = folder / f".clock-{os.getpid()}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _describe(pid: Any) -> dict[str, Any]:
    """A process by its machine, its number, and when it was started, since numbers are used again."""
    started: str | None
    try:
        started = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, TypeError, IndexError):
        started = "unknown" if _is_running(pid) else None
    return {"machine": _machine(), "pid": pid, "started": started}


def _is_running(pid: Any) -> bool:
    """Tells whether a process of that number runs, where there is no /proc."""
    if os.path.isdir("/proc/self"):
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _machine() -> str:
    """Name of this machine; containers may share it, but then not the numbers of their processes."""
    try:
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
