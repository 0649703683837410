from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from sail_encoder.io.threads import BackgroundWriter


def test_nothing_that_is_queued_runs_behind_a_failure():
    begin, done = Event(), []

    def fail():
        begin.wait()
        raise OSError("the disk is full")

    with ThreadPoolExecutor(1) as pool:
        writer = BackgroundWriter(pool, 2)
        writer.submit(fail)
        writer.submit(done.append, "queued")
        begin.set()
        with pytest.raises(OSError, match="the disk is full"):
            writer.drain()
    assert not done
