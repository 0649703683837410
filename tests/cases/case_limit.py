"""A limit on the time of each case, for code on which one never ends; `python -m tools.cases` loads it as a plug-in."""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

SECONDS = 60


def _give_up(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Ends a case that takes too long as a failure."""
    signal.signal(signal.SIGALRM, _give_up)
    # Again and again, since code that takes the error for one of its own may go on with the next attempt.
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
