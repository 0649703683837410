"""Memory with a bound: what was used longest ago goes first, and what is asked for twice is made once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by key, in any thread, of a limited size together.

    The newest value stays even if it is larger than the limit alone.

    Args:
        limit: Size of all values together at most.
        size: Size of one value; by default each counts 1.
    """

    def __init__(self, limit: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self.limit, self.size = limit, size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, Future[V]] = {}
        self._lock = threading.Lock()
        self.total = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of a key, None where there is none or no more."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Keeps a value, and lets go of others if need be."""
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self.total += self.size(value)
            while self.total > self.limit and len(self._values) > 1:
                self._drop(next(iter(self._values)))

    def drop(self, key: K) -> None:
        """Lets go of a value, if there is one."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        if key in self._values:
            self.total -= self.size(self._values.pop(key))

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made now if there is none; threads that ask for it meanwhile wait.

        An error is raised to all who wait, and the next call tries again.
        """
        value = self.get(key)
        if value is not None:
            return value
        with self._lock:
            future = self._making.get(key)
            is_mine = future is None
            future = self._making.setdefault(key, Future())
        if is_mine:
            self._make(key, make, future)
        return future.result()

    def _make(self, key: K, make: Callable[[], V], future: "Future[V]") -> None:
        try:
            # Another thread may have finished between the look and the lock.
            value = self.get(key)
            if value is None:
                value = make()
                self.put(key, value)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)
        finally:
            with self._lock:
                del self._making[key]
