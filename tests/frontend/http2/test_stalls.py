"""Goal: a client that keeps the server waiting is cut off, one that is only slow is not. Method: looks at a connection
without I/O, with what happens between them; and the accounts of what is held, which end at nothing.
"""

from __future__ import annotations

import pytest

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.frames import END_HEADERS, ErrorCode, frame
from ringserve.frontend.http2.noise import NOISE_MAX
from ringserve.frontend.http2.stalls import LEAST_BYTES, Stalls
from tests.frontend.http2.peer import ECHO, HOLD, Peer, answers, goaway, message, request_fields


class Looked:
    """A connection that is looked at."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.unsent_bytes = 0
        self.taken_bytes = 0
        self._stalls = Stalls()

    def look(self) -> bool:
        return self._stalls.look(self.peer.connection, self.unsent_bytes, self.taken_bytes)


def test_an_idle_connection_may_stay() -> None:
    looked = Looked(Peer())
    looked.peer.send(looked.peer.call(1) + looked.peer.call(3, b"x", HOLD))
    looked.peer.read()
    assert all(looked.look() for _ in range(5))
    assert looked.peer.read() == []


@pytest.mark.parametrize("per_look", [0, LEAST_BYTES - 1, LEAST_BYTES])
def test_a_request_must_come(per_look: int) -> None:
    looked = Looked(Peer())
    peer = looked.peer
    peer.send(peer.headers(1) + peer.data(1, message(bytes(200_000))[:100], 0))
    for _ in range(4):
        assert looked.look()
        if peer.connection.streams and per_look:
            peer.send(b"".join(peer.data(1, bytes(min(16_384, per_look)), 0) for _ in range(1)))
    found = answers(peer.read())
    assert (found[1].status if 1 in found else None) == (None if per_look == LEAST_BYTES else 4)
    assert peer.host.account.input_bytes == peer.connection.held_bytes
    peer.connection.disconnected()
    assert peer.host.account.input_bytes == 0


@pytest.mark.parametrize(
    "start",
    [
        lambda peer: peer.call(1)[:5],
        lambda peer: peer.call(1)[:12],
        lambda peer: frame(frames.HEADERS, 0, 1, b"\x83"),
        lambda peer: frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.CONTINUATION, 0, 1, b"\x86"),
    ],
)
def test_a_frame_that_was_begun_must_end(start: object) -> None:
    looked = Looked(Peer())
    assert looked.look()
    looked.peer.send(start(looked.peer))  # type: ignore[operator]
    assert looked.look()
    assert goaway(looked.peer.read()) is None
    assert looked.look()
    assert goaway(looked.peer.read()) == ErrorCode.ENHANCE_YOUR_CALM
    assert looked.look(), "the socket may take the last word"
    assert not looked.look() or looked.peer.connection.is_closing


def test_frames_that_end_may_be_cut_at_every_look() -> None:
    looked = Looked(Peer())
    for stream_id in range(1, 21, 2):
        data = looked.peer.call(stream_id)
        looked.peer.send(data[:15])
        assert looked.look()
        looked.peer.send(data[15:])
    assert goaway(looked.peer.read()) is None
    assert len(looked.peer.messages) == 10


def test_an_answer_whose_window_stays_closed_is_given_up() -> None:
    looked = Looked(Peer())
    peer = looked.peer
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 0}))
    peer.send(peer.call(1, b"x" * 100) + peer.call(3, b"x" * 10_000))
    peer.read()
    for _ in range(4):
        assert looked.look()
        peer.send(frames.window_update(3, 2_000))
        assert 1 <= len(peer.read()) <= 2
    assert list(peer.connection.streams) == [3]
    peer.send(frames.window_update(3, 10_000))
    assert answers(peer.read())[3].status == 0
    assert peer.host.account.output_bytes == 0


def test_a_connection_whose_window_stays_closed_is_ended() -> None:
    looked = Looked(Peer())
    peer = looked.peer
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**30}) + peer.call(1, b"x", HOLD))
    peer.held[0].finish(bytes(500_000))
    peer.read()
    for _ in range(3):
        assert looked.look()
        peer.send(frames.window_update(0, LEAST_BYTES))
        assert goaway(peer.read()) is None
    assert looked.look()
    peer.send(frames.window_update(0, LEAST_BYTES - 1))
    assert goaway(peer.read()) is None
    assert looked.look()
    assert goaway(peer.read()) == ErrorCode.ENHANCE_YOUR_CALM
    assert peer.host.account.refusals == {"enhance_your_calm": 1}
    assert peer.host.account.output_bytes == 0


def test_a_socket_that_takes_nothing_is_closed() -> None:
    looked = Looked(Peer())
    looked.unsent_bytes, looked.taken_bytes = 1_000_000, 5_000
    assert looked.look()
    looked.taken_bytes += LEAST_BYTES
    assert looked.look()
    looked.taken_bytes += LEAST_BYTES - 1
    assert not looked.look()


def test_answers_that_wait_are_bounded() -> None:
    """Two of 90,000 bytes wait, then nothing more: the others are answered with an error, which needs no window."""
    peer = Peer(EngineLimits(unsent_bytes_max=400_000))
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 0}))
    peer.send(b"".join(peer.call(stream_id, b"x", HOLD) for stream_id in range(1, 11, 2)))
    for call in peer.held:
        call.finish(bytes(90_000))
    found = answers(peer.read())
    assert [found[stream_id].status for stream_id in range(1, 11, 2)] == [-1, -1, 8, 8, 8]
    assert peer.host.account.output_bytes == peer.connection.queued_bytes == 2 * 90_005
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL) + frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 1000}))
    peer.read()
    assert peer.connection.queued_bytes == 89_005
    peer.connection.disconnected()
    assert peer.host.account.output_bytes == 0


def test_a_socket_that_is_full_makes_answers_wait() -> None:
    peer = Peer()
    peer.connection.set_blocked(True)
    peer.send(peer.call(1, b"small"))
    assert peer.connection.queued_bytes == 10
    peer.connection.set_blocked(False)
    assert answers(peer.read())[1].body == message(b"small")
    assert peer.connection.inline_bytes_max > 0


@pytest.mark.parametrize("how", ["reset", "overflow", "priority"])
def test_calls_that_are_handed_on_and_reset_are_counted(how: str) -> None:
    """Each was an ordinary call before: that must not make up for its reset (CVE-2023-44487, CVE-2025-8671)."""
    peer = Peer()
    stream_id = 1
    while not peer.connection.is_closing and stream_id < 6 * NOISE_MAX:
        end = {
            "reset": frames.rst_stream(stream_id, ErrorCode.CANCEL),
            "overflow": frames.window_update(stream_id, 2**31 - 1),
            "priority": frame(frames.PRIORITY, 0, stream_id, bytes(4)),
        }[how]
        peer.send(peer.call(stream_id, b"x", HOLD) + end)
        stream_id += 2
    assert goaway(peer.read()) == ErrorCode.ENHANCE_YOUR_CALM
    assert stream_id // 2 <= NOISE_MAX + 2
    assert peer.cancelled >= len(peer.messages) - 1


def test_clients_that_give_back_both_windows_for_every_frame_are_served() -> None:
    peer = Peer()
    for stream_id in range(1, 40_001, 2):
        updates = frames.window_update(0, 10) + frames.window_update(stream_id, 10)
        peer.send(peer.call(stream_id, b"hello") + updates + updates)
        peer.raw()
    assert not peer.connection.is_closing


def test_a_dribbled_frame_takes_no_more_memory_than_a_frame() -> None:
    peer = Peer()
    data = peer.headers(1) + peer.data(1, message(bytes(10_000)))
    most = 0
    for byte in data:
        peer.send(bytes((byte,)))
        most = max(most, len(peer.connection.beginning()))
    assert most <= 66
    assert peer.messages == [bytes(10_000)]


def test_a_declared_length_is_no_way_around() -> None:
    looked = Looked(Peer())
    peer = looked.peer
    peer.send(peer.headers(1, request_fields(ECHO, ("content-length", "5")), END_HEADERS))
    assert looked.look()
    assert looked.look()
    assert answers(peer.read())[1].status == 4
