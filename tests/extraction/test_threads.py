from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from sail_encoder.io.threads import Behind


def test_nothing_that_is_queued_runs_behind_a_failure():
    begin, done = Event(), []

    def fail():
        begin.wait()
        raise OSError("the disk is full")

    with ThreadPoolExecutor(1) as pool:
        behind = Behind(pool, 2)
        behind.submit(fail)
        behind.submit(done.append, "queued")
        begin.set()
        with pytest.raises(OSError, match="the disk is full"):
            behind.drain()
    assert not done
