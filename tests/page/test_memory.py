"""Bounded memory of the page: what stays, what goes, and what is made once."""

import threading

import pytest

from sail_encoder.page.memory import BoundedCache


def test_what_was_used_longest_ago_goes_first():
    cache = BoundedCache(limit=10, size=len)
    cache.put("a", "aaaa")
    cache.put("b", "bbbb")
    assert cache.get("a") == "aaaa"
    cache.put("c", "cccc")
    assert cache.get("b") is None
    assert cache.get("a") == "aaaa"
    assert cache.get("c") == "cccc"
    assert cache.total == 8


def test_the_newest_stays_whatever_its_size():
    cache = BoundedCache(limit=3, size=len)
    cache.put("a", "aa")
    cache.put("b", "bbbbb")
    assert (cache.get("a"), cache.get("b")) == (None, "bbbbb")
    cache.put("b", "b")
    assert cache.total == 1


def test_threads_that_ask_together_have_it_made_once():
    cache, made, begun = BoundedCache(limit=5), [], threading.Barrier(4)

    def make():
        made.append(threading.get_ident())
        # Long enough for the others to ask meanwhile.
        threading.Event().wait(0.05)
        return object()

    found = []

    def ask():
        begun.wait()
        found.append(cache.get_or_make("key", make))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_an_error_is_raised_and_the_next_call_tries_again():
    cache = BoundedCache(limit=5)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("key", lambda: 1 // 0)
    assert cache.get_or_make("key", lambda: 7) == 7
