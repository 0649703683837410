"""Pooled features on other machines: a run works in a folder here, and its shards go to where they are wanted.

A run needs a journal and locks, which object stores do not have. So it works in a folder of this machine's cache, in
which the same command goes on after a kill, and what is finished is copied from there; run.json comes last.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from sail_encoder.io.errors import StoreError, UserError
from sail_encoder.io.files import read_json, write_json
from sail_encoder.io.fingerprints import digest
from sail_encoder.io.remote import open_file_system
from sail_encoder.io.runs import RUN
from sail_encoder.store.index import FAILURES, INDEX
from sail_encoder.store.shares import Share

_COPIED = "copied.json"
"""In the folder here: size and time of each file as it was copied."""

_STOPPED = 128
"""Exit statuses from here on mean that a signal came."""


class RemoteFolder:
    """A folder elsewhere, and the one here in which a run for it works.

    Args:
        path: Its path with a protocol, such as `s3://bucket/features`.

    Raises:
        UserError: If nothing knows the protocol, or a package that it needs is missing.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        self.files, self.name = open_file_system(self.path)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.local = cache / "sail-encoder/remote" / digest(self.path, 16)

    def run(self, extract: Callable[[Path], int], copy: bool = True) -> int:
        """Lets a run work here, and copies what it has finished.

        Args:
            extract: Extracts into a folder, and returns its exit status.
            copy: Whether to copy it.

        Returns:
            That status.

        Raises:
            StoreError: If there are files of others, or it cannot be written.
        """
        self._require_own()
        status = extract(self.local)
        if copy and status < _STOPPED and (self.local / RUN).exists():
            self._copy()
        return status

    def _copied(self) -> dict[str, list[int]]:
        path = self.local / _COPIED
        if not path.exists():
            return {}
        try:
            return dict(read_json(path))
        except (UserError, TypeError, ValueError):
            raise StoreError(f"{path} is damaged; delete {self.local}, and use another --out") from None

    def _require_own(self) -> None:
        """Refuses a folder with files that no run of this machine has copied there."""
        foreign = sorted(self._found() - self._copied().keys())
        if foreign:
            raise StoreError(
                f"{self.path} has {foreign[0]}, which no run on this machine has copied there; use another --out"
            )

    def _found(self) -> set[str]:
        """Names of the files that are there now."""
        try:
            self.files.invalidate_cache()
            found = self.files.ls(self.name, detail=False) if self.files.exists(self.name) else []
        # Each file system has errors of its own, with no common class.
        except Exception as error:
            raise StoreError(f"cannot look into {self.path} ({_in_words(error)})") from None
        return {Path(name).name for name in found}

    def _copy(self) -> None:
        """Copies what has changed or is no longer there, and removes what a run that was overwritten has left."""
        found = self._found()
        copied = {name: state for name, state in self._copied().items() if name in found}
        shards = sorted(path.name for path in self.local.glob("features_*.npy"))
        names = [*shards, *(name for name in (INDEX, FAILURES, RUN) if (self.local / name).exists())]
        states = {name: _state(self.local / name) for name in names}
        changed = [name for name in names if copied.get(name) != states[name]]
        replaced = [name for name in copied if name.endswith(".npy") and (name in changed or name not in names)]
        try:
            self.files.makedirs(self.name, exist_ok=True)
            # Nobody is to meet new vectors below an index of earlier ones.
            self._remove([name for name in (RUN, INDEX) if replaced and name in copied], copied)
            for name in (name for name in names if copied.get(name) != states[name]):
                # Claimed first, so that a copy that is cut short is known to be ours.
                write_json(self.local / _COPIED, {**copied, name: []})
                self.files.put_file(str(self.local / name), f"{self.name}/{name}")
                copied[name] = states[name]
                write_json(self.local / _COPIED, copied)
            self._remove(sorted(copied.keys() - set(names)), copied)
        except Exception as error:
            raise StoreError(
                f"cannot write {self.path} ({_in_words(error)}); the features are safe in {self.local}, give the same "
                "command again"
            ) from None
        print(f"copied to {self.path}")

    def _remove(self, names: Sequence[str], copied: dict[str, list[int]]) -> None:
        for name in names:
            self.files.rm_file(f"{self.name}/{name}")
            del copied[name]
            write_json(self.local / _COPIED, copied)


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def check_remote(path: str, pool: str, shard: str) -> None:
    """Makes sure that features of this kind can go elsewhere.

    Raises:
        UserError: If they cannot.
    """
    if pool == "none":
        raise UserError(
            f"{path} takes pooled vectors alone, as grids are one file per image; use --pool mean, or a folder"
        )
    if Share.parse(shard).count > 1:
        raise UserError(f"--shard {shard} cannot write to {path}; use a folder that all machines see, and copy it then")


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
