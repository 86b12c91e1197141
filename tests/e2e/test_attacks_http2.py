"""Goal: no client of the gRPC port can crash a frontend, fill its memory or keep it from serving others. Method: a
whole server with small limits; one attack at a time, while honest clients call all the time: every one of their
calls must be answered rightly, and the frontend's memory stays under the bound that is stated with each attack.
"""

from __future__ import annotations

import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ringserve.frontend.http2 import frames
from ringserve.frontend.http2.arriving import FRAME_BYTES_MAX
from ringserve.frontend.http2.frames import CONTINUATION, END_HEADERS, PRIORITY, ErrorCode, frame
from ringserve.frontend.http2.noise import NOISE_MAX
from tests.e2e.attackers import MIB, Attacker, arguments, block, bounded, data, headers, message
from tests.e2e.clients import make_request
from tests.e2e.server import Server, wait_until
from tests.e2e.traffic import Traffic

LIMITS = {
    "client_stall_ms_max": "1500",
    "inflated_bytes_max": "16MiB",
    "held_bytes_max": "32MiB",
    "unsent_bytes_max": "64MiB",
    "concurrent_streams_max": "256",
    "connections_max": "300",
}
CALM = ErrorCode.ENHANCE_YOUR_CALM
IDS = range(1, 2**31, 2)
WIDE = {frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**31 - 1}


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), *arguments(models, LIMITS)) as server:
        server.wait_available("half")
        server.wait_available("echo")
        yield server


def call_bytes(megabytes: float = 0.0) -> bytes:
    """A Predict of one row of that size; its answer is as large. Not of the model that the honest clients call."""
    request = make_request("echo", x=np.zeros((1, max(1, int(megabytes * MIB / 4))), np.float32))
    return message(request.SerializeToString())


def cancelled(server: Server) -> int:
    """Calls that ended because their client, or what it did, reset them."""
    lines = _page(server).decode().splitlines()
    wanted = ("ringserve_calls_ended_total{", 'protocol="grpc"', 'code="CANCELLED"')
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if all(word in line for word in wanted))


@contextmanager
def handled(server: Server, attackers: int) -> Iterator[None]:
    """So many attackers get so far as the limit and what they have open then, and no further: by what the server has
    handled, as what they send may lie in sockets."""
    before = cancelled(server)
    yield
    wait_until(lambda: cancelled(server) - before >= attackers * (NOISE_MAX - 1), "resets to be counted")
    assert cancelled(server) - before <= attackers * (NOISE_MAX + 1 + int(LIMITS["concurrent_streams_max"]))


def test_rapid_reset(server: Server) -> None:
    """CVE-2023-44487, with whole requests: each is taken, sent on, and then reset."""
    request = data(1, call_bytes())
    with Traffic(server, "half", 2), handled(server, 3), bounded(server, 40 * MIB):
        for _ in range(3):
            with Attacker(server.grpc_target, {}) as attacker:
                for stream_id in IDS:
                    call = headers(stream_id, block()) + frames.FRAME_HEADER.pack(
                        len(request) - 9 << 8, frames.END_STREAM, stream_id
                    )
                    if not attacker.send(call + request[9:] + frames.rst_stream(stream_id, ErrorCode.CANCEL)):
                        break
                attacker.read()
                assert attacker.goaway() in (CALM, None)


def test_made_you_reset(server: Server) -> None:
    """CVE-2025-8671: the server is made to reset the streams, by a window that overflows."""
    request = call_bytes()
    with (
        Traffic(server, "half", 2),
        handled(server, 1),
        bounded(server, 40 * MIB),
        Attacker(server.grpc_target, {}) as attacker,
    ):
        for stream_id in IDS:
            overflow = frames.window_update(stream_id, 2**31 - 1)
            if not attacker.send(headers(stream_id, block()) + data(stream_id, request) + overflow):
                break
        attacker.read()
        assert attacker.goaway() in (CALM, None)


FLOODS: dict[str, bytes] = {
    "PING": frames.ping(bytes(8), False) * 1_000,
    "PING acknowledgements": frames.ping(bytes(8), True) * 1_000,
    "SETTINGS": frames.settings({4: 1}) * 1_000,
    "large SETTINGS": frame(frames.SETTINGS, 0, 0, (b"\0\4" + bytes(4) + b"\0\4\0\0\xff\xff") * 1_300),
    "SETTINGS acknowledgements": frames.SETTINGS_ACK * 1_000,
    "PRIORITY": frame(PRIORITY, 0, 7, bytes(5)) * 1_000,
    "WINDOW_UPDATE": frames.window_update(0, 1) * 1_000,
    "unknown frames": frame(77, 0, 0, b"x") * 1_000,
    "GOAWAY": frames.goaway(0, ErrorCode.NO_ERROR) * 1_000,
    "CONTINUATION": headers(1, block(), 0) + frame(CONTINUATION, 0, 1, b"\x90") * 1_000,
    "large CONTINUATION": headers(1, block(), 0) + frame(CONTINUATION, 0, 1, bytes(16_384)) * 100,
    "empty DATA": headers(1, block()) + data(1, b"", 0) * 5_000,
    "HPACK, indexed": headers(1, b"\x90" * 16_000),
    "HPACK, many fields": headers(1, block() + b"\x00\x01x\x00" * 4_000),
    "trailers": headers(1, block()) + headers(1, b"\x00\x01x\x00" * 500, END_HEADERS) * 1_000,
    "resets of nothing": headers(1, block()) + frames.rst_stream(1, ErrorCode.CANCEL) * 5_000,
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("reads", [True, False])
def test_flood(server: Server, name: str, reads: bool) -> None:
    """Frames that cost the server and not the client. It may read what it is told, or leave it unread."""
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, {}) as attacker:
        assert not attacker.flood(FLOODS[name]), "the server has ended it"
        if reads:
            attacker.read()
            assert attacker.goaway() in (CALM, ErrorCode.PROTOCOL_ERROR, ErrorCode.STREAM_CLOSED, None)


def test_costly_header_blocks(server: Server) -> None:
    """Calls with hundreds of tiny fields each, none known from before; how they are taken is in test_turns.py."""
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, {}) as attacker:
        streams = iter(IDS)
        for _ in range(4):
            calls = [headers(i, block("/none/" + str(i)) + b"\x90" * 480) for i in islice(streams, 1_000)]
            if not attacker.send(b"".join(calls)):
                break
            attacker.read_some()


def test_empty_requests(server: Server) -> None:
    """HEADERS without a field, each on a stream of its own."""
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, {}) as attacker:
        streams = iter(IDS)
        for _ in range(20):
            attacker.send(b"".join(headers(next(streams), b"") for _ in range(1_000)))
        attacker.read()


@pytest.mark.parametrize("window", [0, 1, 100])
def test_answers_that_no_window_lets_out(server: Server, window: int) -> None:
    """200 answers of 1 MiB are asked for and never taken: 32 MiB wait, the rest is answered with an error. Those that
    nobody takes are given up, which makes room for others where the host is slow; and where the worker gets no core
    meanwhile the model's queue is full (14). Each call ends in one of these ways."""
    request = call_bytes(1)
    settings = {frames.SETTINGS_INITIAL_WINDOW_SIZE: window}
    with Traffic(server, "half", 2), bounded(server, 150 * MIB), Attacker(server.grpc_target, settings) as attacker:
        for stream_id in IDS[:200]:
            assert attacker.send(headers(stream_id, block()) + data(stream_id, request))

        def is_over() -> bool:
            ends = Counter(f"status {each}" for each in _statuses(attacker)) + Counter(reset=_resets(attacker))
            print(ends, attacker.goaway())  # shown where it fails
            assert ends.keys() <= {"status 8", "status 14", "reset"}
            return ends.total() >= 180

        wait_until(is_over, "what is not taken to be given up")
        wait_until(lambda: _resets(attacker) >= 10, "answers that nobody takes to be given up")
        assert _statuses(attacker).count(8) >= 1


def test_answers_that_the_connections_window_holds(server: Server) -> None:
    """The streams' windows are wide open, the connection's stays closed: the connection is ended."""
    request = call_bytes(1)
    with Traffic(server, "half", 2), bounded(server, 80 * MIB), Attacker(server.grpc_target, WIDE) as attacker:
        for stream_id in IDS[:50]:
            assert attacker.send(headers(stream_id, block()) + data(stream_id, request))
        attacker.read()
        assert attacker.goaway() == CALM


def test_answers_that_nobody_reads(server: Server) -> None:
    """All windows are open, but nothing is read from the socket."""
    request = call_bytes(1)
    wide = {**WIDE, frames.SETTINGS_MAX_FRAME_SIZE: 2**24 - 1}
    with Traffic(server, "half", 2), bounded(server, 100 * MIB):
        attacker = Attacker(server.grpc_target, wide, receive_bytes=4_096)
        with attacker:
            attacker.send(frames.window_update(0, 2**31 - 1 - 65_535))
            for stream_id in IDS[:400]:
                if not attacker.send(headers(stream_id, block()) + data(stream_id, request), 5.0):
                    break
            wait_until(lambda: not attacker.send(frames.ping(bytes(8), False), 1.0), "the connection to be ended")


def test_answers_in_crumbs(server: Server) -> None:
    """CVE-2019-9511: the window opens a byte at a time."""
    settings = {frames.SETTINGS_INITIAL_WINDOW_SIZE: 0}
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, settings) as attacker:
        attacker.send(headers(1, block()) + data(1, call_bytes(1)))
        assert not attacker.flood(frames.window_update(1, 1) * 1_000)


@pytest.mark.parametrize("frame_bytes", [16_384, FRAME_BYTES_MAX])
def test_requests_that_are_never_complete(server: Server, frame_bytes: int) -> None:
    """50 requests of 2 MiB, each but for its last byte: 32 MiB of them are held, and not for long."""
    request = call_bytes(2)
    with Traffic(server, "half", 2), bounded(server, 80 * MIB), Attacker(server.grpc_target, {}) as attacker:
        for stream_id in IDS[:50]:
            assert attacker.send(headers(stream_id, block()) + data(stream_id, request[:-1], 0, frame_bytes))
        wait_until(lambda: _statuses(attacker).count(8) >= 30, "requests beyond the limit to be refused")
        wait_until(lambda: _statuses(attacker).count(4) >= 10, "requests that do not come to be given up")


def test_messages_that_are_only_announced(server: Server) -> None:
    """4,000 MiB in 200 calls, a hundred bytes of each: memory is taken as bytes come, not as they are promised."""
    announced = message(bytes(20 * MIB))[:100]
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, {}) as attacker:
        for stream_id in IDS[:200]:
            assert attacker.send(headers(stream_id, block()) + data(stream_id, announced, 0))
        wait_until(lambda: _statuses(attacker).count(4) == 200, "requests that do not come to be given up")


@pytest.mark.parametrize("dribbles", [True, False])
@pytest.mark.parametrize(
    "start",
    [
        frame(frames.HEADERS, 0, 1, block()[:20]),
        frame(frames.HEADERS, END_HEADERS, 1, block())[:-5],
        headers(1, block()) + data(1, bytes(100))[:50],
        headers(1, block()) + data(1, message(bytes(100_000)), frame_bytes=FRAME_BYTES_MAX)[:500],
    ],
    ids=["headers without end", "half a HEADERS frame", "half a DATA frame", "some of a long DATA frame"],
)
def test_slow_frames(server: Server, start: bytes, dribbles: bool) -> None:
    """The beginning of something that never ends: the connection is ended."""
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, {}) as attacker:
        for byte in start if dribbles else ():
            assert attacker.send(bytes((byte,)))
        if not dribbles:
            attacker.send(start)
        attacker.read()
        assert attacker.goaway() == CALM


def test_calls_without_a_request(server: Server) -> None:
    with Traffic(server, "half", 2), bounded(server, 40 * MIB), Attacker(server.grpc_target, {}) as attacker:
        attacker.send(b"".join(headers(stream_id, block()) for stream_id in IDS[:300]))
        wait_until(lambda: _statuses(attacker).count(4) == 256, "calls to be given up")
        assert _resets(attacker, ErrorCode.REFUSED_STREAM) == 300 - 256


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_compressed_bombs(server: Server, encoding: bytes) -> None:
    """40 messages of 64 MiB in 64 KiB: none is inflated beyond 16 MiB, one at a time."""
    packer = zlib.compressobj(9, wbits=31 if encoding == b"gzip" else 15)
    bomb = message(b"".join([*(packer.compress(bytes(MIB)) for _ in range(64)), packer.flush()]), 1)
    start = block("/tensorflow.serving.PredictionService/Predict", (b"grpc-encoding", encoding))
    with Traffic(server, "half", 2), bounded(server, 60 * MIB), Attacker(server.grpc_target, {}) as attacker:
        for stream_id in IDS[:40]:
            assert attacker.send(headers(stream_id, start) + data(stream_id, bomb))
        wait_until(lambda: _statuses(attacker).count(8) == 40, "every bomb to be refused")


def test_more_connections_than_allowed(server: Server) -> None:
    with Traffic(server, "half", 2), bounded(server, 60 * MIB), ExitStack() as stack:
        attackers = [stack.enter_context(Attacker(server.grpc_target)) for _ in range(500)]
        refused = sum(bool(attacker.read_some(0.01)) and attacker.goaway() == CALM for attacker in attackers)
        assert 150 <= refused <= 250


def test_the_refusals_are_counted(server: Server) -> None:
    with Attacker(server.grpc_target, {}) as attacker:
        attacker.send(frame(frames.PING, 0, 1, bytes(8)))
        attacker.read()
    name = b'ringserve_client_refusals_total{process="frontend-0",protocol="grpc",reason="protocol_error"}'
    wait_until(lambda: name in _page(server), "the metric")


def _page(server: Server) -> bytes:
    with urllib.request.urlopen(f"{server.rest_url}/metrics", timeout=20) as response:
        page: bytes = response.read()
    return page


def _statuses(attacker: Attacker) -> list[int]:
    """The `grpc-status` of all answers so far."""
    attacker.read_some()
    found = []
    for kind, _, _, payload in attacker.frames():
        if kind == frames.HEADERS and b"grpc-status" in payload:
            at = payload.index(b"grpc-status") + len(b"grpc-status")
            found.append(int(payload[at + 1 : at + 1 + payload[at]]))
    return found


def _resets(attacker: Attacker, code: ErrorCode = ErrorCode.CANCEL) -> int:
    attacker.read_some()
    kinds = [int.from_bytes(payload, "big") for kind, _, _, payload in attacker.frames() if kind == frames.RST_STREAM]
    return kinds.count(code)
