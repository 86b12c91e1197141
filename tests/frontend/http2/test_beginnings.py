"""Goal: a long call whose lane is full is refused by its beginning, the rest of it is asked of nobody, and no other
call ever waits for a window that never comes. Method: a crowd that is made up; a client that keeps the rules of flow
control and nothing else, in random turns; then the official client against an engine that is narrow and wide by turns.
"""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor
from math import inf

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.http2 import beginnings, frames
from ringserve.frontend.http2.beginnings import CALM_NS, NARROW_BYTES
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.frames import DATA, END_STREAM, ErrorCode, frame
from tests.frontend.http2.peer import ECHO, HOLD, Frame, Peer, answers, goaway, message, request_fields, u32
from tests.frontend.http2.service import NATIVE, PREFIX, Running, Service, connect
from tests.frontend.http2.test_crowds import MadeUp
from tests.frontend.http2.test_parts import data_frames, noise
from tests.frontend.http2.test_runs import TIMEOUT, quiet_peer

LONG = 100_000
BODY = b"a" + noise(1, LONG - 1)
WITHHELD = STREAM_WINDOW_BYTES - NARROW_BYTES


class Begun(MadeUp):
    """A crowd of messages `a…`."""

    suffix = b""


def crowded(room: float, size: int = LONG, short_way: bool = True) -> tuple[Peer, Begun]:
    peer, crowd = quiet_peer(short_way), Begun(room)
    peer.cache.methods.crowds[size] = [crowd]
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**30}) + frames.window_update(0, 2**30))
    peer.read()
    return peer, crowd


def headers(peer: Peer, stream_id: int, path: str = ECHO, *more: tuple[str, str]) -> bytes:
    return peer.headers(stream_id, request_fields(path, *(more or (TIMEOUT,))))


def windows(found: list[Frame]) -> tuple[list[int], dict[int, int]]:
    """Initial windows that were set, and what was given to streams."""
    initial = [
        int.from_bytes(one.payload[2:], "big")
        for one in found
        if one.kind == frames.SETTINGS and one.payload[:2] == b"\0\4"
    ]
    given = {one.stream_id: int.from_bytes(one.payload, "big") for one in found if one.kind == frames.WINDOW_UPDATE}
    return initial, given


@pytest.mark.parametrize("first", [6, 1_000, 16_384, 40_000])
@pytest.mark.parametrize("short_way", [True, False])
def test_who_would_be_refused_is_refused_at_the_first_bytes(first: int, short_way: bool) -> None:
    peer, crowd = crowded(0, short_way=short_way)
    data = message(BODY)
    peer.send(headers(peer, 1) + frame(DATA, 0, 1, data[:first]))
    found = peer.read()
    answer = answers(found)[1]
    assert (answer.status, answer.fields["grpc-retry-pushback-ms"], answer.reset) == (8, "25", ErrorCode.NO_ERROR)
    assert windows(found) == ([NARROW_BYTES], {})
    assert (crowd.count, crowd.coming, crowd.timeouts_ns) == (1, 0, [100_000_000])
    peer.deliver(data_frames(1, data[first:], [50_000]) + peer.call(3), 20_000)  # it crossed our answer on its way
    assert answers(peer.read())[3].status == 0
    assert peer.messages == [b"hello"]
    ledger = peer.host.account.calls
    assert (ledger.received, ledger.ended[8], ledger.ended[0]) == (2, 1, 1)
    assert (peer.connection.held_bytes, peer.host.account.input_bytes) == (0, 0)


def test_a_frame_that_is_taken_in_parts_is_refused_by_its_first_one() -> None:
    peer, crowd = crowded(0)
    data = headers(peer, 1) + frame(DATA, END_STREAM, 1, message(BODY))
    peer.send(data[:20_000])
    assert answers(peer.read())[1].status == 8
    assert peer.connection.room() is None  # the rest has no place
    peer.deliver(data[20_000:] + peer.call(3), 30_000)
    assert answers(peer.read())[3].status == 0
    assert crowd.count == 1


@pytest.mark.parametrize("what", ["prefix", "length", "path", "flag", "suffix", "deadline", "few", "told"])
def test_others_are_not(what: str) -> None:
    peer, crowd = crowded(0)
    body, more, path = BODY, [TIMEOUT], ECHO
    if what == "prefix":
        body = b"b" + BODY[1:]
    elif what == "length":
        body = BODY[:-1]
    elif what == "path":
        crowd.path = HOLD
    elif what == "suffix":
        crowd.suffix = b"e"
    elif what == "deadline":
        more = [("x", "y")]
    elif what == "told":
        peer.connection.told = peer.refused.append
    data = message(body, flag=int(what == "flag"))
    first = 5 if what == "few" else 3_000
    peer.send(headers(peer, 1, path, *more) + frame(DATA, 0, 1, data[:first]) + data_frames(1, data[first:], [16_384]))
    found = peer.read()
    assert windows(found) == ([], {})
    assert crowd.count == 0
    assert answers(found)[1].status == (13 if what == "flag" else 0)
    assert peer.messages == ([] if what == "flag" else [body])


def test_whoever_is_refused_so_is_no_attacker() -> None:
    """Official clients send more beside a call that ends early: a window update, a reset that crosses our answer."""
    peer, crowd = crowded(0)
    beginning = message(BODY)[:NARROW_BYTES]
    for stream_id in range(1, 10_001, 2):
        peer.send(headers(peer, stream_id) + frame(DATA, 0, stream_id, beginning) + frames.window_update(0, 5))
        peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert goaway(peer.read()) is None
    assert crowd.count == 5_000


def test_short_messages_are_refused_and_make_nothing_narrow() -> None:
    peer, crowd = crowded(0, 5_000)
    peer.send(headers(peer, 1) + frame(DATA, 0, 1, message(b"a" * 5_000)[:2_000]))
    found = peer.read()
    assert (answers(found)[1].status, windows(found), crowd.count) == (8, ([], {}), 1)


def test_a_run_of_whole_long_messages_makes_narrow_too() -> None:
    peer, crowd = crowded(0, 70_000)
    peer.connection.is_short_way_on = True
    call = headers(peer, 1) + frame(DATA, END_STREAM, 1, message(b"a" * 70_000))
    peer.send(call)
    found = peer.read()
    assert (answers(found)[1].status, windows(found)[0], crowd.count) == (8, [NARROW_BYTES], 1)


@pytest.mark.parametrize("what", ["suffix", "prefix"])
def test_what_its_beginning_does_not_tell_makes_nothing_narrow(what: str) -> None:
    """Its messages can only be refused where they have come whole, and of a narrow stream none ever would at once."""
    peer, crowd = crowded(0, 70_000)
    body = b"a" * 70_000
    if what == "suffix":
        crowd.suffix = b"a"
    else:
        crowd.prefix = body[:NARROW_BYTES]
    peer.send(headers(peer, 1) + frame(DATA, END_STREAM, 1, message(body)))
    found = peer.read()
    assert (answers(found)[1].status, windows(found)[0], crowd.count) == (8, [], 1)


def narrow() -> tuple[Peer, Begun]:
    peer, crowd = crowded(0)
    peer.send(headers(peer, 1) + frame(DATA, 0, 1, message(BODY)[:NARROW_BYTES]))
    peer.read()
    return peer, crowd


def test_who_is_let_in_has_the_rest_of_the_window() -> None:
    peer, crowd = narrow()
    crowd.left = 1
    data = message(BODY)
    peer.send(headers(peer, 3) + frame(DATA, 0, 3, data[:NARROW_BYTES]))
    assert windows(peer.read()) == ([], {3: WITHHELD + NARROW_BYTES})
    assert (crowd.coming, crowd.count) == (1, 1)
    peer.deliver(data_frames(3, data[NARROW_BYTES:], [90_000]), 30_000)
    assert (crowd.coming, peer.messages) == (0, [BODY])
    assert answers(peer.read())[3].status == 0


@pytest.mark.parametrize("end", ["reset", "gone", "length", "failed"])
def test_whoever_began_to_come_is_counted_no_more_when_he_never_will(end: str) -> None:
    peer, crowd = crowded(3)
    fields = request_fields(ECHO, TIMEOUT, ("content-length", str(LONG + 5)))
    peer.send(peer.headers(1, fields) + frame(DATA, 0, 1, message(BODY)[:NARROW_BYTES]))
    assert crowd.coming == 1
    if end == "reset":
        peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    elif end == "gone":
        peer.connection.disconnected()
    elif end == "length":
        peer.send(frame(DATA, END_STREAM, 1, b"more"))
    else:
        peer.connection.streams[1].fail(4, "too late")
    assert (crowd.coming, crowd.count) == (0, 0)


def test_open_calls_get_back_what_they_lose() -> None:
    peer, crowd = crowded(0)
    begun = frame(DATA, 0, 1, message(bytes(LONG))[:NARROW_BYTES])
    peer.send(peer.headers(1, request_fields(HOLD)) + begun + peer.headers(3, request_fields(HOLD)))
    peer.send(peer.call(5, b"held", HOLD))
    peer.send(headers(peer, 7) + frame(DATA, 0, 7, message(BODY)[:NARROW_BYTES]))
    assert windows(peer.read()) == ([NARROW_BYTES], {1: WITHHELD + NARROW_BYTES, 3: WITHHELD})
    assert crowd.count == 1


def test_when_nothing_long_was_refused_for_long_enough_it_is_wide_again() -> None:
    peer, crowd = narrow()
    beginning = frame(DATA, 0, 0, message(BODY)[:NARROW_BYTES])
    peer.host.seconds += CALM_NS / 1e9
    peer.send(headers(peer, 3) + beginning[:5] + u32(3) + beginning[9:])  # refused: another time begins
    peer.host.seconds += CALM_NS / 1e9
    crowd.left = inf
    peer.send(headers(peer, 5) + beginning[:5] + u32(5) + beginning[9:])
    assert windows(peer.read()) == ([], {5: WITHHELD + NARROW_BYTES})
    assert not peer.cache.methods.crowds  # its lane is full no more
    peer.host.seconds += 0.001
    peer.send(headers(peer, 7) + beginning[:5] + u32(7) + beginning[9:])
    assert windows(peer.read()) == ([STREAM_WINDOW_BYTES], {})
    assert crowd.count == 2


class Client:
    """Flow control as RFC 9113 6.9 has it, and what is left to send of each stream."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.initial = STREAM_WINDOW_BYTES
        self.credit: dict[int, int] = {}  # updates less what was sent
        self.left: dict[int, bytes] = {}
        self.told: dict[int, int] = {}
        self.is_behind = False  # reads nothing of what it is told
        self._last_id = -1

    def begin(self, body: bytes) -> int:
        self._last_id += 2
        self.credit[self._last_id] = 0
        self.left[self._last_id] = message(body)
        self.peer.send(headers(self.peer, self._last_id))
        return self._last_id

    def go_on(self, nbytes: int) -> bool:
        """Every stream sends so much of what it may; whether any did."""
        moved = False
        for stream_id, body in list(self.left.items()):
            size = min(nbytes, len(body), self.initial + self.credit[stream_id])
            if size > 0:
                moved = True
                flags = END_STREAM if size == len(body) else 0
                self.credit[stream_id] -= size
                self.left[stream_id] = body[size:]
                if flags:
                    del self.left[stream_id]
                self.peer.deliver(frame(DATA, flags, stream_id, body[:size]), 30_000)
        return moved

    def listen(self) -> None:
        found = self.peer.read()
        for one in found:
            if one.kind == frames.SETTINGS and one.payload:
                self.initial = int.from_bytes(one.payload[2:], "big")
                self.peer.send(frames.SETTINGS_ACK)
            elif one.kind == frames.WINDOW_UPDATE and one.stream_id:
                self.credit[one.stream_id] += int.from_bytes(one.payload, "big")
                assert self.initial + self.credit[one.stream_id] <= frames.WINDOW_BYTES_CEILING
        for stream_id, answer in answers(found).items():
            assert answer.reset in (None, ErrorCode.NO_ERROR), answer
            self.told[stream_id] = answer.status
            self.left.pop(stream_id, None)

    def come_through(self) -> None:
        """Sends what is left; every call has one answer then, or a refusal."""
        for _ in range(2_000):
            self.listen()
            if not self.left:
                break
            assert self.go_on(60_000), "somebody waits for a window that never comes"
        self.listen()
        assert set(self.told) == set(self.credit), "each has one answer"
        assert set(self.told.values()) <= {0, 8}


STEPS = st.one_of(
    st.sampled_from(["crowd", "room", "calm", "listen", "one crowded", "one crowded", "one other", "many"]),
    st.integers(1_000, 200_000),
)


@settings(max_examples=150)
@given(steps=st.lists(STEPS, max_size=40), short_way=st.booleans())
def test_whoever_keeps_the_rules_comes_through(steps: list[str | int], short_way: bool) -> None:
    peer, crowd = crowded(0, short_way=short_way)
    client = Client(peer)
    other = b"b" + noise(2, 299_999)
    for step in steps:
        if step == "crowd":
            crowd.left = 0
        elif step == "room":
            crowd.left = 2
        elif step == "calm":
            peer.host.seconds += CALM_NS / 1e9 + 0.001
        elif step == "listen":
            client.listen()
        elif step == "one crowded":
            client.begin(BODY)
        elif step == "one other":
            client.begin(other)
        elif step == "many":
            for _ in range(3):
                client.begin(BODY)
        elif isinstance(step, int):
            client.go_on(step)
    client.come_through()
    assert len([code for code in client.told.values() if code]) == crowd.count
    assert crowd.coming == 0
    assert peer.connection.held_bytes == 0
    for call in peer.connection.streams.values():
        assert call.unreturned_bytes <= STREAM_WINDOW_BYTES
    assert peer.connection.withheld_bytes in (0, WITHHELD)


class Crowded(Service):
    """Echo has a crowd, whose room changes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.crowd = Begun(0)
        self.crowd.path = PREFIX + "Echo"
        chosen = random.Random(1)
        self.crowd.room = lambda timeout_ns: chosen.choice((0, 0, 0, 2))  # type: ignore[method-assign]

    def methods(self) -> Methods:
        return Methods(
            super().methods().unary, heavy=frozenset((PREFIX + "Echo",)), crowds={LONG: [self.crowd]}
        )


def test_the_official_client_is_narrow_and_wide_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "CALM_NS", 3_000_000)
    service = Crowded()
    server = Running(NATIVE, service, EngineLimits(), socket.AF_INET, "")
    other = b"b" + noise(3, 2_999_999)

    def calls(seed: int) -> list[grpc.StatusCode]:
        chosen, told = random.Random(seed), []
        for _ in range(40):
            body = BODY if chosen.random() < 0.7 else other[: chosen.randrange(1, len(other))]
            try:
                assert echo(body, timeout=60) == body
            except grpc.RpcError as error:
                assert body is BODY
                told.append(error.code())
        return told

    try:
        with connect(server.target) as channel, ThreadPoolExecutor(6) as pool:
            echo = channel.unary_unary(PREFIX + "Echo")
            told = [code for found in pool.map(calls, range(6)) for code in found]
        assert set(told) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(told) == service.crowd.count
        assert service.crowd.coming == 0
    finally:
        server.stop()
    assert not service.bugs
