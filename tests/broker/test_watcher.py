"""The watcher's threads, for real: looks that come back, that follow each other, that raise, and that hang."""

from __future__ import annotations

import functools
import select
import threading
from typing import Any

from ringserve.broker.watcher import STUCK_NS, Watcher


class Clock:
    """Time by hand, for the watcher's own decisions."""

    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


def results(watcher: Watcher, count: int) -> list[tuple[str, Any]]:
    """The next `count` results, waited for at the descriptor as the loop does."""
    found: list[tuple[str, Any]] = []
    poller = select.poll()
    poller.register(watcher.fd, select.POLLIN)
    while len(found) < count:
        assert poller.poll(10_000), f"only {found} came"
        found += [(key, value) for key, _, value in watcher.take()]
    return found


def test_looks_come_back_in_their_order() -> None:
    watcher = Watcher(Clock())
    numbers = [watcher.look(str(number), functools.partial(pow, number, 2), anew=False) for number in range(5)]
    assert results(watcher, 5) == [(str(number), number * number) for number in range(5)]
    assert numbers == sorted(numbers)
    assert watcher.take() == []


def test_a_key_is_looked_at_by_one_look_at_a_time() -> None:
    watcher = Watcher(Clock())
    go = threading.Event()
    first = watcher.look("a", lambda: go.wait(10) and "first", anew=False)
    assert watcher.look("a", lambda: "never", anew=False) == first
    go.set()
    assert results(watcher, 1) == [("a", "first")]
    assert watcher.look("a", lambda: "second", anew=False) > first
    assert results(watcher, 1) == [("a", "second")]


def test_a_look_asked_for_anew_follows_the_one_under_way_and_has_a_higher_number() -> None:
    watcher = Watcher(Clock())
    go = threading.Event()
    first = watcher.look("a", lambda: go.wait(10) and "old", anew=False)
    assert watcher.look("a", lambda: "replaced", anew=True) > first
    assert watcher.look("a", lambda: "new", anew=True) > first
    go.set()
    assert results(watcher, 2) == [("a", "old"), ("a", "new")]


def test_a_look_that_hangs_is_left_to_its_thread_and_the_others_go_on() -> None:
    clock = Clock()
    watcher = Watcher(clock)
    go, begun = threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        go.wait(30)
        return "late"

    watcher.look("dead file server", hang, anew=False)
    watcher.look("b", lambda: "b", anew=False)
    assert begun.wait(10)
    assert watcher.tend(clock.now_ns) == clock.now_ns + STUCK_NS
    assert watcher.take() == []
    clock.now_ns += STUCK_NS
    watcher.tend(clock.now_ns)
    assert results(watcher, 1) == [("b", "b")]
    watcher.look("c", lambda: "c", anew=False)
    assert results(watcher, 1) == [("c", "c")]
    go.set()
    assert results(watcher, 1) == [("dead file server", "late")]
    assert watcher.tend(clock.now_ns) == 0


def test_several_that_hang_have_a_thread_each_and_no_more() -> None:
    clock = Clock()
    watcher = Watcher(clock)
    go = threading.Event()
    before = threading.active_count()
    for number in range(3):
        begun = threading.Event()
        watcher.look(str(number), lambda begun=begun: begun.set() or go.wait(30), anew=False)  # type: ignore[misc]
        assert begun.wait(10)
        clock.now_ns += STUCK_NS
        watcher.tend(clock.now_ns)
        watcher.tend(clock.now_ns)
    assert threading.active_count() == before + 3
    go.set()
    assert len(results(watcher, 3)) == 3


def test_a_look_that_raises_comes_back_empty_handed() -> None:
    watcher = Watcher(Clock())
    watcher.look("a", lambda: 1 // 0, anew=False)
    watcher.look("b", lambda: "b", anew=False)
    assert results(watcher, 2) == [("a", None), ("b", "b")]


def test_nothing_under_way_needs_no_tending() -> None:
    assert Watcher(Clock()).tend(5) == 0
