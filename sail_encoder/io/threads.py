"""Reading ahead of the thread that runs the model, and writing in its background."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()
_WAKING = 0.5
"""Seconds after which a waiting thread looks whether a signal has come."""


def map_ahead(function: Callable[[T], R], items: Iterable[T], pool: Executor, ahead: int) -> Iterator[R]:
    """Maps in parallel and in order, with at most `ahead` results waiting to be taken."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Runs an iterator in a thread of its own, up to `depth` items ahead; its errors are raised here."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def fill() -> None:
        try:
            for item in items:
                if not _put(ready, (item, None), stopped):
                    return
            _put(ready, (_END, None), stopped)
        except BaseException as error:
            _put(ready, (_END, error), stopped)

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = _take(ready)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            thread.join(_WAKING)


def _take(ready: "queue.Queue[Any]") -> Any:
    """Waits for an item, and wakes now and then: a signal that comes just before the wait begins would not end it."""
    while True:
        try:
            return ready.get(timeout=_WAKING)
        except queue.Empty:
            continue


def _put(ready: "queue.Queue[Any]", item: Any, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


class BackgroundWriter:
    """Runs functions in one thread, in order, with at most `depth` of them waiting.

    The first error is raised by the next call, and nothing that is queued after it runs.
    """

    def __init__(self, pool: Executor, depth: int) -> None:
        self.pool = pool
        self.depth = depth
        self.waiting: deque[Future[Any]] = deque()
        self.failed = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Queues a call, waiting for earlier ones if there are too many."""
        while len(self.waiting) >= self.depth or (self.waiting and self.waiting[0].done()):
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self._call, function, *arguments))

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self.failed = True
            raise

    def drain(self) -> None:
        """Waits for all calls."""
        while self.waiting:
            self.waiting.popleft().result()
