"""Goal: no window, frame size or stream state of the client is ever violated, and nothing is lost or stuck. Method: the
`h2` library, which enforces all of it, as the client in the same process, with random sizes and random generosity.
"""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.frontend.handler import EngineLimits
from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.control import STREAM_WINDOW_BYTES
from ringserve.frontend.http2.sending import PUMP_BYTES_MAX
from tests.frontend.http2.peer import ECHO, HOLD, Host, Peer, answers, goaway, message, request_fields


class Client:
    """An h2 client joined to a connection without I/O. It gives window back only when told."""

    def __init__(self, initial_window: int, frame_bytes_max: int) -> None:
        self.peer = Peer(begun=False)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: initial_window,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: frame_bytes_max,
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
            },
        )
        self.h2.max_inbound_frame_size = frame_bytes_max
        self.h2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.owed: dict[int, int] = {}
        self.exchange()

    def exchange(self) -> None:
        """Carries bytes both ways until both sides are silent. h2 raises if the server breaks a rule."""
        while True:
            to_server = self.h2.data_to_send()
            if to_server:
                self.peer.send(to_server)
            to_client = self.peer.raw()
            if not to_server and not to_client:
                return
            for event in self.h2.receive_data(to_client):
                if isinstance(event, h2.events.DataReceived):
                    stream_id = event.stream_id or 0
                    self.bodies[stream_id] = self.bodies.get(stream_id, b"") + (event.data or b"")
                    self.owed[stream_id] = self.owed.get(stream_id, 0) + (event.flow_controlled_length or 0)
                elif isinstance(event, h2.events.TrailersReceived):
                    self.trailers[event.stream_id or 0] = dict(event.headers or [])
                elif isinstance(event, h2.events.ConnectionTerminated | h2.events.StreamReset):
                    raise AssertionError(event)

    def call(self, path: str, data: bytes) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, request_fields(path))
        body = message(data)
        while body:
            self.exchange()
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(body))
            assert room > 0, "the server does not return the window"
            self.h2.send_data(stream_id, body[:room])
            body = body[room:]
        self.h2.end_stream(stream_id)
        self.exchange()
        return int(stream_id)

    def pay(self, stream_id: int, nbytes: int) -> None:
        """Returns up to `nbytes` of a stream's owed window, and of the connection's."""
        nbytes = min(nbytes, self.owed.get(stream_id, 0))
        if nbytes:
            self.owed[stream_id] -= nbytes
            self.h2.increment_flow_control_window(nbytes)
            if stream_id not in self.trailers:
                self.h2.increment_flow_control_window(nbytes, stream_id)
            self.exchange()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 5, 100, 16_384, 65_535, 200_000]),
    st.sampled_from([16_384, 20_000, 2**20]),
    st.lists(st.sampled_from([0, 1, 94, 95, 96, 16_379, 16_380, 65_530, 65_531, 150_000]), min_size=1, max_size=6),
    st.lists(st.integers(2_000, 100_000), min_size=1, max_size=5),
    st.booleans(),
)
def test_answers_within_any_windows(
    initial_window: int, frame_bytes_max: int, sizes: list[int], payments: list[int], later: bool
) -> None:
    client = Client(initial_window, frame_bytes_max)
    calls = {client.call(HOLD if later else ECHO, b"x" * size): size for size in sizes}
    for held, size in zip(client.peer.held, sizes, strict=False):
        held.finish(b"x" * size)
    client.exchange()
    turn = 0
    while len(client.trailers) < len(calls):
        before = sum(map(len, client.bodies.values())), len(client.trailers)
        for stream_id in calls:
            client.pay(stream_id, payments[turn % len(payments)])
            turn += 1
        if initial_window < 1_000:
            client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 30_000 + turn})
            client.exchange()
            initial_window = 30_000
        assert (sum(map(len, client.bodies.values())), len(client.trailers)) != before, "stuck"
    for stream_id, size in calls.items():
        assert client.bodies[stream_id] == message(b"x" * size)
        assert client.trailers[stream_id] == {b"grpc-status": b"0"}
    assert not client.peer.connection.streams


@pytest.mark.parametrize("size", [STREAM_WINDOW_BYTES, 3 * STREAM_WINDOW_BYTES + 1])
def test_requests_larger_than_the_window(size: int) -> None:
    client = Client(2**20, 16_384)
    client.call(HOLD, bytes(size))
    assert list(map(len, client.peer.messages)) == [size]


def test_a_smaller_initial_window_makes_windows_negative_and_nothing_is_sent() -> None:
    peer = Peer()
    peer.send(frames.window_update(0, 10**6) + peer.call(1, b"", HOLD) + peer.call(3, b"", HOLD))
    peer.read()
    peer.held[0].finish(bytes(100_000))
    assert len(answers(peer.read())[1].body) == 65_535
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 10}))
    assert 1 not in answers(peer.read())
    peer.send(frames.window_update(1, 65_525))  # now exactly zero
    assert 1 not in answers(peer.read())
    peer.held[1].finish(bytes(4))
    assert answers(peer.read())[3].body == message(bytes(4))[:10]
    peer.send(frames.window_update(1, 1))
    assert len(answers(peer.read())[1].body) == 1
    peer.send(frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 10**6}))
    assert len(answers(peer.read())[1].body) == 100_005 - 65_536


def test_small_answers_are_not_stuck_behind_a_large_one() -> None:
    peer = Peer()
    peer.send(frames.window_update(0, 10**6) + peer.call(1, b"", HOLD))
    peer.held[0].finish(bytes(500_000))
    assert len(answers(peer.read())[1].body) == 65_535
    peer.send(peer.call(3, b"small"))  # stream 1 waits for its own window only
    assert answers(peer.read())[3].body == message(b"small")


def test_transfers_take_turns_and_leave_in_bounded_portions() -> None:
    peer = Peer()
    peer.send(frames.window_update(0, 2**30) + frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**30}))
    peer.send(peer.call(1, b"", HOLD) + peer.call(3, b"", HOLD))
    peer.read()
    for held in peer.held:
        held.finish(bytes(3 * PUMP_BYTES_MAX))
    connection = peer.connection
    connection.pump()
    portion = b"".join(connection.out)
    assert PUMP_BYTES_MAX <= len(portion) < 1.2 * PUMP_BYTES_MAX
    found = peer.read()
    order = [frame.stream_id for frame in found if frame.kind == frames.DATA]
    assert order[:6] == [1, 3] * 3
    assert {len(answer.body) for answer in answers(found).values()} == {3 * PUMP_BYTES_MAX + 5}


def test_a_reset_drops_a_transfer_wherever_it_waits() -> None:
    wide = frames.settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 10**6})
    for windows in (wide, frames.window_update(0, 10**6)):  # waiting for the connection's window; for its own
        peer = Peer()
        peer.send(windows + peer.call(1, b"", HOLD))
        peer.held[0].finish(bytes(200_000))
        peer.read()
        peer.send(frames.rst_stream(1, frames.ErrorCode.CANCEL) + frames.window_update(0, 10**6))
        assert peer.read() == []
        peer.send(peer.call(3, bytes(60_000)[:10_000]))
        assert answers(peer.read())[3].body == message(bytes(10_000))
        assert not peer.connection.streams


def test_a_client_that_shrinks_our_header_table_is_told_so_once() -> None:
    peer = Peer()
    peer.send(frames.settings({frames.SETTINGS_HEADER_TABLE_SIZE: 0}) + peer.call(1) + peer.call(3))
    blocks = [frame.payload for frame in peer.read() if frame.kind == frames.HEADERS]
    assert [block[:1] == b"\x20" for block in blocks] == [True, False, False, False]


def test_long_header_blocks_are_continued() -> None:
    peer = Peer()
    connection = peer.connection
    connection.write_headers(1, bytes(40_000), end_stream=True)
    data = peer.raw()
    kinds = []
    while data:
        head, flags, _ = frames.FRAME_HEADER.unpack_from(data)
        kinds.append((head & 255, flags, head >> 8))
        data = data[9 + (head >> 8) :]
    assert kinds == [(1, 1, 16_384), (9, 0, 16_384), (9, 4, 7_232)]


def test_the_connection_window_is_returned_rarely_but_in_time() -> None:
    peer = Peer()
    peer.connection._received_bytes = 2**30 - 20
    peer.send(peer.call(1, b"hello"))
    peer.send(peer.call(3, b"hello"))
    updates = [int.from_bytes(f.payload, "big") for f in peer.read() if f.kind == frames.WINDOW_UPDATE]
    assert updates == [2**30]
    peer.connection._received_bytes = 2**31 - 5
    peer.send(peer.call(5, b"hello"))
    assert goaway(peer.read()) == frames.ErrorCode.FLOW_CONTROL_ERROR


def test_unfinished_messages_of_a_connection_are_bounded() -> None:
    peer = Peer(EngineLimits(message_bytes_max=1_000))
    connection = peer.connection
    connection._held_bytes_max = 3_000
    for stream_id in (1, 3, 5, 7):
        peer.send(peer.headers(stream_id) + peer.data(stream_id, message(bytes(1_000))[:900], 0))
    found = answers(peer.read())
    assert {stream_id: answer.status for stream_id, answer in found.items()} == {7: 8}
    assert connection.held_bytes <= 3_000
    for stream_id in (1, 3, 5):
        peer.send(peer.data(stream_id, bytes(105)))
    assert [answer.status for answer in answers(peer.read()).values()] == [0, 0, 0]
    assert connection.held_bytes == 0


def test_output_wakes_the_host_once_a_turn() -> None:
    peer = Peer()
    peer.send(peer.call(1, b"", HOLD) + peer.call(3, b"", HOLD))
    before = peer.host.wakes
    for held in peer.held:
        held.finish(b"")
    assert isinstance(peer.host, Host)
    assert peer.host.wakes == before + 1
