"""Cables: every message arrives once, whole and in order, whatever the kernel takes at a time and whoever dies; and the
broker's poll loop serves them, whatever workers do."""

from __future__ import annotations

import errno
import selectors
from collections.abc import Iterator

import pytest

from ringserve.broker.cable import Cable, pair
from ringserve.broker.cables import Cables
from ringserve.broker.registry import Arrivals

#: More than a socket's buffer holds.
LARGE = bytes(range(256)) * 8192


@pytest.fixture
def ends() -> Iterator[tuple[Cable, Cable]]:
    one, other = map(Cable, pair())
    yield one, other
    one.close()
    other.close()


def test_messages_arrive_whole_and_in_order(ends: tuple[Cable, Cable]) -> None:
    one, other = ends
    sent = [b"", b"a", b"bc" * 1000, b"d"]
    assert all(one.send(message) for message in sent)
    assert other.receive() == sent
    assert other.receive() == []
    other.send(b"back")
    assert one.receive() == [b"back"]


def test_what_the_socket_does_not_take_is_kept_and_sent_later(ends: tuple[Cable, Cable]) -> None:
    one, other = ends
    sent = [LARGE, b"small", LARGE[::-1]]
    taken = [one.send(message) for message in sent]
    assert not any(taken)
    assert one.unsent
    received: list[bytes] = []
    while len(received) < len(sent):
        received += other.receive()
        one.flush()
    assert received == sent
    assert not one.unsent


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM, errno.EPIPE])
def test_want_of_memory_loses_nothing_and_tears_nothing(code: int) -> None:
    """It is no end of the other side, which EPIPE is; half of a message was taken before."""
    connection, other_end = pair()
    other = Cable(other_end)

    class Short:
        """A socket whose kernel has once no memory for what it is to send."""

        calls = 0

        def send(self, data: memoryview, flags: int) -> int:
            self.calls += 1
            if self.calls == 2:
                raise OSError(code, "no")
            return connection.send(data[:100] if self.calls == 1 else data, flags)

    one = Cable(connection)
    one._socket = Short()  # type: ignore[assignment]
    sent = [bytes(1000), b"one", b"two"]
    told = [one.send(message) for message in sent]
    if code == errno.EPIPE:
        assert told == [True] * 3  # nobody is there
        assert not one.unsent
    else:
        assert told == [False] * 3
        assert one.flush()
        assert other.receive() == sent
    connection.close()
    other.close()


def test_what_was_sent_before_a_death_arrives(ends: tuple[Cable, Cable]) -> None:
    one, other = ends
    one.send(b"last words")
    one.close()
    assert other.receive() == [b"last words"]
    assert other.receive() == []
    assert other.over


def test_half_a_message_of_a_process_that_died_is_none(ends: tuple[Cable, Cable]) -> None:
    one, other = ends
    one.send(b"whole")
    one.send(LARGE)
    one.close()
    assert other.receive() == [b"whole"]
    while not other.over:
        assert other.receive() == []


def test_sending_to_a_process_that_is_gone_is_no_error(ends: tuple[Cable, Cable]) -> None:
    one, other = ends
    other.send(LARGE)
    one.close()
    assert not other.send(b"anybody?")
    assert other.flush()
    assert other.send(b"nobody")


def test_closing_waits_a_while_for_a_peer_that_reads(ends: tuple[Cable, Cable]) -> None:
    one, other = ends
    assert not one.send(b"x" * 300_000)  # not all of it fits into the socket, the rest does once some is read
    assert other.receive() == []
    one.close(flush_ms=10_000)
    received: list[bytes] = []
    while not other.over:
        received += other.receive()
    assert received == [b"x" * 300_000]


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        yield selector


def turn(selector: selectors.BaseSelector) -> list[bytes]:
    arrivals = Arrivals()
    for key, _ in selector.select(0):
        key.data(arrivals)
    return arrivals.mail


def test_the_brokers_loop_sends_to_a_slow_worker_without_waiting(
    ends: tuple[Cable, Cable], selector: selectors.BaseSelector
) -> None:
    one, worker = ends
    cables = Cables(selector)
    cables.add(7, one)
    assert not selector.select(0), "nothing to do"
    cables.send(7, LARGE)
    cables.send(7, b"next")
    worker.send(b"done")
    received: list[bytes] = []
    mail: list[bytes] = []
    while len(received) < 2:
        mail += turn(selector)
        received += worker.receive()
    assert received == [LARGE, b"next"]
    assert mail == [b"done"]
    turn(selector)
    assert not selector.select(0), "it is not woken for being able to write"
    cables.close()


def test_a_dead_workers_last_words_are_heard_and_its_cable_does_not_wake_the_loop_for_ever(
    ends: tuple[Cable, Cable], selector: selectors.BaseSelector
) -> None:
    one, worker = ends
    cables = Cables(selector)
    cables.add(7, one)
    worker.send(b"done")
    worker.close()
    assert cables.remove(7) == [b"done"], "though the loop has not been there yet"
    assert cables.remove(7) == []
    two, other = map(Cable, pair())
    cables.add(8, two)
    other.close()
    turn(selector)
    assert not selector.select(0)
    cables.send(8, b"to nobody")
    assert cables.remove(8) == []
