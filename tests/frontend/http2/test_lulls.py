"""Goal: a connection whose calls wait for a queue is read less often, no other one is, and nothing is lost by it.
Method: the decision by itself, with times as numbers; and an engine whose clock the test sets, whose calls are held.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arrivals import Arrivals
from ringserve.frontend.http2.calls import UnaryCall
from ringserve.frontend.http2.in_place import IN_PLACE_BYTES_MIN
from ringserve.frontend.http2.lulls import PAUSE_NS, Lulls
from ringserve.frontend.http2.protocol import EngineProtocol
from ringserve.frontend.http2.rush import Rush
from tests.frontend.http2.peer import ECHO, Peer, message
from tests.frontend.http2.test_runs import TIMEOUT
from tests.frontend.http2.test_turns import Loop, Socket

MS = 1_000_000


def lulls_of(took_ms: float, patience_ms: float = 0, answers_count: int = 100) -> Lulls:
    lulls = Lulls()
    for _ in range(answers_count):
        lulls.answered(int(took_ms * MS), int(patience_ms * MS))
    return lulls


@pytest.mark.parametrize(
    ("took_ms", "in_flight", "pause_ms"),
    [
        (0.3, 10_000, 0),  # no queue
        (2.9, 10_000, 0),
        (3.2, 7, 2),  # 2 ms of 3.2 are more than half of seven calls
        (3.2, 6, 0),
        (5.9, 100, 2),
        (6.2, 100, 3),
        (25, 100, 3),
        (25, 20, 0),  # next to nothing comes in a pause
        (60, 32, 0),  # a slow model
    ],
)  # fmt: skip
def test_a_pause_is_for_those_who_wait_and_are_many(took_ms: float, in_flight: int, pause_ms: int) -> None:
    assert lulls_of(took_ms).pause_ns(in_flight, False, False) == pause_ms * MS


@given(st.floats(0, 1_000), st.integers(0, 2_000), st.booleans())
def test_a_pause_is_never_longer_than_what_waits_outlasts(took_ms: float, in_flight: int, is_crowded: bool) -> None:
    pause_ns = lulls_of(took_ms).pause_ns(in_flight, is_crowded, False)
    assert pause_ns in (0, 2 * MS, PAUSE_NS)
    if pause_ns and not is_crowded:
        assert pause_ns <= took_ms * MS * 2 / 3
        assert in_flight * pause_ns / (took_ms * MS) >= 3.99


@pytest.mark.parametrize(("patience_ms", "bears_it"), [(0, True), (5.9, False), (6, True), (12.5, True), (0.1, False)])
def test_short_deadlines_have_no_time_for_pauses(patience_ms: float, bears_it: bool) -> None:
    lulls = lulls_of(20, patience_ms)
    assert (lulls.pause_ns(1_000, False, False) > 0) == bears_it
    assert lulls.pause_ns(0, True, False) == PAUSE_NS  # some are refused anyway, and pauses leave more for the others
    assert lulls.pause_ns(0, True, True) == (PAUSE_NS if bears_it else 0)
    lulls.answered(20 * MS, 0)  # who has no deadline says nothing of the others
    assert (lulls.pause_ns(1_000, False, False) > 0) == bears_it


def test_one_slow_answer_among_fast_ones_is_no_queue() -> None:
    lulls = lulls_of(1)
    lulls.answered(16 * MS, 0)
    assert lulls.pause_ns(1_000, False, False) == 0
    for _ in range(30):
        lulls.answered(16 * MS, 0)
    assert lulls.pause_ns(1_000, False, False)
    for _ in range(30):
        lulls.answered(MS, 0)
    assert lulls.pause_ns(1_000, False, False) == 0


class Held:
    """An engine of a clock that stands, and the calls that its handler holds."""

    def __init__(self) -> None:
        self.now_ns = 10**12
        self.calls: list[Any] = []
        self.loop = Loop()
        self.loop.methods.unary[ECHO] = lambda call, _: self.calls.append(call)
        self.loop.engine.clock_ns = lambda: self.now_ns
        self._next_id: dict[Socket, int] = {}

    def connect(self) -> tuple[EngineProtocol, Socket]:
        protocol, sock = self.loop.connect()
        self._next_id[sock] = 1
        return protocol, sock

    def call(
        self, protocol: EngineProtocol, sock: Socket, count: int, timeout: tuple[str, str] = TIMEOUT, size: int = 5
    ) -> None:
        """`count` calls in one read."""
        first, peer = self._next_id[sock], Peer()
        self._next_id[sock] += 2 * count
        ids = range(first, self._next_id[sock], 2)
        protocol.data_received(b"".join(peer.call(one, bytes(size), ECHO, timeout) for one in ids))

    def serve(
        self, protocol: EngineProtocol, sock: Socket, took_ms: float, timeout: tuple[str, str] = TIMEOUT
    ) -> None:
        """A hundred calls that take so long, one turn of the loop each."""
        for _ in range(100):
            self.call(protocol, sock, 1, timeout)
            self.now_ns += int(took_ms * MS)
            self.calls.pop().finish(b"done")
            protocol.flush()


def run_held(test: Callable[[Held], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        held = Held()
        await test(held)
        await held.loop.close()

    asyncio.run(run())


async def until_read(*socks: Socket) -> None:
    async with asyncio.timeout(20):
        while not all(sock.is_read for sock in socks):
            await asyncio.sleep(0.001)  # a pause is of real time


def test_who_waits_in_a_queue_is_read_in_pauses_that_end_together_and_count_as_waiting() -> None:
    async def test(held: Held) -> None:
        (one, sock), (two, other), (fast, theirs) = (held.connect() for _ in range(3))
        held.serve(one, sock, 10)
        held.serve(two, other, 10)
        held.serve(fast, theirs, 1)
        assert (sock.pauses, other.pauses, theirs.pauses) == (0, 0, 0)  # little comes in a pause
        for protocol, its in ((one, sock), (two, other), (fast, theirs)):
            protocol._arrivals = Arrivals(lambda: 0)
            held.call(protocol, its, 40)
        assert (sock.is_read, other.is_read, theirs.is_read) == (False, False, True)
        one._arrivals = Arrivals(lambda: 100)  # something came meanwhile
        held.now_ns += 3 * MS
        await until_read(sock, other)
        one._arrivals = Arrivals(lambda: 0)
        for protocol, its, waited_ms in ((one, sock, 3), (two, other, 0)):
            held.call(protocol, its, 1)
            assert held.calls[-1].timeout_ns == (100 - waited_ms) * MS
        assert (sock.pauses, other.pauses, theirs.pauses) == (2, 2, 0)
        for call in held.calls:
            call.finish(b"done")
        for protocol in (one, two, fast):
            protocol.flush()
        assert sum(its.written.count(b"done") for its in (sock, other, theirs)) == 3 * 100 + 3 * 40 + 2
        for protocol in (one, two, fast):
            protocol.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize(("unread_bytes", "waited_ms"), [(100, 30), (0, 0)])
def test_what_came_while_its_client_waited_for_a_turn_has_waited_since(unread_bytes: int, waited_ms: int) -> None:
    """After a long read the next one is short: nothing else would tell how old it is."""

    async def test(held: Held) -> None:
        one, sock = held.connect()
        unread = 0
        one._arrivals = Arrivals(lambda: unread)
        held.call(one, sock, 60, size=700)
        assert (sock.is_read, one._is_paused) == (False, False)
        unread = unread_bytes
        held.now_ns += 30 * MS
        await until_read(sock)
        unread = 0
        held.now_ns += 1 * MS
        held.call(one, sock, 1)
        assert held.calls.pop().timeout_ns == (100 - waited_ms - (waited_ms > 0)) * MS
        held.now_ns += 1 * MS
        held.call(one, sock, 1)
        assert held.calls.pop().timeout_ns == 100 * MS  # once
        one.connection_lost(None)

    run_held(test)


def test_what_comes_after_a_client_took_its_answers_has_not_waited() -> None:
    """It was not read as it took none, and so waited for no turn either."""

    async def test(held: Held) -> None:
        one, sock = held.connect()
        one._arrivals = Arrivals(lambda: 0)
        one.pause_writing()
        sock.unsent_bytes = 2**30
        held.call(one, sock, 60, size=700)
        assert (sock.pauses, sock.is_read) == (1, False)
        sock.unsent_bytes = 0
        one.resume_writing()
        assert (sock.pauses, sock.is_read) == (1, True)
        held.now_ns += 1_000 * MS
        held.call(one, sock, 1)
        assert (len(held.calls), held.calls[-1].timeout_ns) == (61, 100 * MS)
        one.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize("unread_bytes", [0, 1])
def test_what_is_there_already_is_read_first(unread_bytes: int) -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        held.serve(one, sock, 10)
        one._arrivals = Arrivals(lambda: unread_bytes)
        held.call(one, sock, 60, size=700)  # a long read, after which a look is taken
        assert (len(held.calls), sock.is_read) == (60, False)
        assert one._is_paused == (unread_bytes == 0)
        await until_read(sock)
        one.connection_lost(None)

    run_held(test)


def test_a_round_in_a_rush_lasts_until_the_pause_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds_ns: list[int] = []
    monkeypatch.setattr(Rush, "round_took", lambda _, own_ns: rounds_ns.append(own_ns))

    async def test(held: Held) -> None:
        held.loop.engine.own_ns = lambda: held.now_ns
        one, sock = held.connect()
        held.serve(one, sock, 10)
        held.loop.engine.rush.seen(held.now_ns)
        one._arrivals = Arrivals(lambda: 0)
        held.call(one, sock, 60, size=700)
        assert one._is_paused
        held.now_ns += 5 * MS
        assert not rounds_ns
        await until_read(sock)
        assert rounds_ns == [5 * MS]
        one.connection_lost(None)

    run_held(test)


def test_answers_given_together_tell_as_much() -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        for _ in range(100):
            held.call(one, sock, 40)
            held.now_ns += 10 * MS
            UnaryCall.finish_together(held.calls, b"", [b"done"] * len(held.calls), b"")
            held.calls.clear()
            one.flush()
            if not sock.is_read:
                break
        assert one._is_paused
        one.connection_lost(None)

    run_held(test)


def test_a_long_message_is_read_on() -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        held.serve(one, sock, 10)
        held.call(one, sock, 3)
        assert sock.is_read
        body = message(bytes(2 * IN_PLACE_BYTES_MIN))
        frame = frames.frame(frames.DATA, frames.END_STREAM, 1_001, body)
        peer, count = Peer(), 40
        ids = range(207, 207 + 2 * count, 2)
        calls = b"".join(peer.call(each, b"alike", ECHO, TIMEOUT) for each in ids)
        one.read(calls + peer.headers(1_001) + frame[:50])
        assert len(held.calls) == 3 + count
        assert one.connection.part_bytes > IN_PLACE_BYTES_MIN
        assert sock.is_read
        one.connection_lost(None)

    run_held(test)


def test_a_client_that_leaves_before_its_answer_is_written_is_freed_without_the_cyclic_collector() -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        held.call(one, sock, 1)
        gone = weakref.ref(one.connection)
        held.calls.pop().finish(b"done")
        one.connection_lost(None)
        del one
        await asyncio.sleep(0)  # the turn in which it would have been written
        assert gone() is None

    gc.collect()
    gc.disable()
    try:
        run_held(test)
    finally:
        gc.enable()


def test_a_client_that_leaves_in_a_pause_leaves_nothing() -> None:
    async def test(held: Held) -> None:
        (one, sock), (two, other) = held.connect(), held.connect()
        held.serve(one, sock, 10)
        held.serve(two, other, 10)
        held.call(one, sock, 40)
        held.call(two, other, 40)
        sock.closed = True
        one.connection_lost(None)
        await until_read(other)
        assert not sock.is_read
        held.call(two, other, 1)
        assert len(held.calls) == 2 * 40 + 1
        two.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize(("timeout", "bears_it"), [("100m", True), ("20m", False)])
def test_calls_that_must_be_answered_soon_are_read_on(timeout: str, bears_it: bool) -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        held.serve(one, sock, 10, ("grpc-timeout", timeout))
        held.call(one, sock, 40, ("grpc-timeout", timeout))
        assert sock.is_read != bears_it
        one.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize(("count", "pauses"), [(10, True), (60, False)])
def test_where_deadlines_are_short_only_little_reads_that_were_refused_are_followed_by_a_pause(
    count: int, pauses: bool
) -> None:
    async def test(held: Held) -> None:
        one, sock = held.connect()
        one._arrivals = Arrivals(lambda: 0)
        soon = ("grpc-timeout", "20m")
        held.serve(one, sock, 10, soon)
        one.connection.was_crowded = True  # as a refusal in this read would set it
        held.call(one, sock, count, soon, size=700)
        assert one._is_paused == pauses
        one.connection_lost(None)

    run_held(test)


@pytest.mark.parametrize(("patience_ms", "is_paused"), [(0, False), (3, False), (4, True), (1_000, True)])
def test_a_barred_connection_is_read_in_pauses(patience_ms: int, is_paused: bool) -> None:
    """What comes of it costs little but the read."""
    lulls = Lulls()
    lulls.answered(MS // 10, patience_ms * MS)
    assert lulls.pause_ns(0, False, False, is_barred=True) == (2 * MS if is_paused else 0)
    assert lulls.pause_ns(0, False, True, is_barred=True) == 0  # there was enough in it
