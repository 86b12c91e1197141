"""Goal: however the bytes arrive, the outcome is the same. Method: random conversations, delivered whole, split at
every point, and through the long way only; and random bytes, which must never raise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import END_HEADERS, END_STREAM, PADDED, ErrorCode
from tests.frontend.http2.peer import BUG, ECHO, HOLD, Peer, message, request_fields

#: One step of a conversation: what is done, on which of a few streams, with which bytes.
ACTIONS = ["call", "headers", "data", "end", "pieces", "padded", "trailers", "reset", "window", "ping", "settings"]
ACTIONS += ["initial", "continued", "timeout", "metadata", "unknown", "hold", "bug", "answer", "wide", "gzip", "odd"]
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5), st.binary(max_size=40)),
    max_size=12,
)


def write(peer: Peer, step: tuple[str, int, bytes], fresh: list[int]) -> bytes:
    """The bytes of a step. `fresh`: the next new stream; older ones are referred to from it."""
    action, index, data = step
    old = max(1, fresh[0] - 2 * index)
    new = fresh[0] + 2
    if action in ("call", "hold", "bug", "timeout", "metadata", "unknown", "headers", "continued", "gzip"):
        fresh[0] = new
    paths = {"hold": HOLD, "bug": BUG, "unknown": "/no"}
    if action in ("call", *paths):
        return peer.call(new, data, paths.get(action, ECHO))
    if action == "timeout":
        return peer.call(new, data, ECHO, ("grpc-timeout", f"{len(data) + index}m"))
    if action == "metadata":
        return peer.call(new, data, ECHO, ("x-trace", data.hex()), ("x-fixed", "y"))
    if action == "gzip":
        packer = zlib.compressobj(wbits=31)
        packed = message(packer.compress(data) + packer.flush(), 1)
        return peer.headers(new, request_fields(ECHO, ("grpc-encoding", "gzip"))) + peer.data(new, packed)
    if action == "continued":
        block = peer.block(request_fields())
        first = frames.frame(frames.HEADERS, 0, new, block[: index * 9])
        rest = frames.frame(frames.CONTINUATION, END_HEADERS, new, block[index * 9 :])
        return first + rest + peer.data(new, message(data))
    written: dict[str, Callable[[], bytes]] = {
        "headers": lambda: peer.headers(new),
        "data": lambda: peer.data(old, message(data), 0),
        "end": lambda: peer.data(old, b""),
        "pieces": lambda: peer.data(old, message(data)[:6], 0) + peer.data(old, message(data)[6:]),
        "padded": lambda: frames.frame(0, PADDED | END_STREAM, old, b"\x02" + message(data) + bytes(2)),
        "trailers": lambda: peer.headers(old, [("x-after", "1")], END_HEADERS | END_STREAM),
        "reset": lambda: frames.rst_stream(old, ErrorCode.CANCEL),
        "window": lambda: frames.window_update(old if index else 0, len(data)),
        "wide": lambda: frames.window_update(old if index else 0, 2**30),
        "ping": lambda: frames.ping(bytes(8), False),
        "settings": lambda: frames.settings({frames.SETTINGS_MAX_FRAME_SIZE: 20_000 + index}),
        "initial": lambda: frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: len(data)}),
        "odd": lambda: frames.frame(index * 3, len(data), old, data),
        "answer": lambda: b"",
    }
    return written[action]()


def outcome(
    conversation: list[tuple[str, int, bytes]], short_way: bool, pieces: list[int], waited_ns: int = 0
) -> object:
    """Everything that can be seen of a conversation, with its bytes delivered in pieces of those lengths in turn.

    waited_ns: for how long all of it has waited to be read.
    """
    peer = Peer(EngineLimits(concurrent_streams_max=4), short_way=short_way)
    fresh = [-1]
    seen: list[object] = []
    for step in conversation:
        data = write(peer, step, fresh)
        if step[0] == "answer" and peer.held:
            peer.held.pop(0).finish(step[2] * 3)
        at, turn = 0, 0
        while at < len(data):
            length = pieces[turn % len(pieces)]
            peer.send(data[at : at + length], waited_ns)
            at, turn = at + length, turn + 1
        # Frames leave in one order whatever the pieces are, because a step is answered before the next one.
        seen.append(peer.read())
    connection = peer.connection
    state = (connection.send_window, connection.held_bytes, connection.last_stream_id, connection.is_closing)
    calls = [(call.timeout_ns, tuple(call.metadata)) for call in peer.held]
    books = (connection.calls.received, connection.calls.ended, connection.calls.unread)
    return seen, state, peer.messages, peer.cancelled, sorted(connection.streams), len(peer.host.bugs), calls, books


@settings(max_examples=400, deadline=None)
@given(steps, st.sampled_from([0, 2_000_000, 8_000_000]))
def test_the_short_way_does_what_the_long_way_does(
    conversation: list[tuple[str, int, bytes]], waited_ns: int
) -> None:
    assert outcome(conversation, True, [10**6], waited_ns) == outcome(conversation, False, [10**6], waited_ns)


@settings(max_examples=250, deadline=None)
@given(steps, st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_pieces_do_not_matter(conversation: list[tuple[str, int, bytes]], pieces: list[int]) -> None:
    assert outcome(conversation, True, pieces) == outcome(conversation, True, [10**6])


@pytest.mark.parametrize("short_way", [True, False])
def test_split_at_every_point(short_way: bool) -> None:
    def run(cut: int) -> list[object]:
        peer = Peer(short_way=short_way, begun=False)
        data = frames.PREFACE + frames.settings({3: 100}) + frames.SETTINGS_ACK + peer.call(1) + peer.headers(3)
        data += peer.call(5, b"x" * 50, ECHO, ("grpc-timeout", "5S")) + peer.data(3, message(b"y"))
        peer.send(data[:cut])
        peer.send(data[cut:])
        return [*peer.read(), peer.messages, len(data)]

    whole = run(0)
    assert whole[-2] == [b"hello", b"x" * 50, b"y"]
    assert isinstance(whole[-1], int)
    for cut in range(1, whole[-1]):
        assert run(cut) == whole


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_end_in_a_goaway_or_in_nothing(data: bytes, begun: bool) -> None:
    peer = Peer(begun=begun)
    peer.send(data)
    peer.read()
    if peer.connection.is_closing:
        assert not peer.connection.streams


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=30))))
def test_random_frames_never_raise(parts: list[tuple[int, int, int, bytes]]) -> None:
    peer = Peer()
    for kind, flags, stream_id, payload in parts:
        peer.send(frames.frame(kind, flags, stream_id, payload))
    peer.read()
