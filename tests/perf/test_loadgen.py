"""The load generator against servers that behave, servers that answer awkwardly, and servers that misbehave.

It is built with the address and undefined-behaviour sanitizers here; a finding of theirs ends a run with an exit status
that `loadgen.run` raises on.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import pytest

from perf import loadgen, stand_in
from perf.loadgen import Exchange, Load
from ringserve.frontend.http2 import frames

ROOT = Path(__file__).resolve().parents[2]
SMALL = [Exchange(bytes([index]) * 300, bytes([index]) * 300) for index in range(5)]
LARGE = [Exchange(bytes(range(256)) * 1200, bytes(range(256)) * 1200)]


@contextmanager
def standing_in(*options: str) -> Iterator[int]:
    command = [sys.executable, "-m", "perf.stand_in", "--echo", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def echo_load(port: int, exchanges: list[Exchange] = SMALL, **options: Any) -> Load:
    defaults: dict[str, Any] = {"in_flight": 8, "connections": 2, "count": 400, "compare": "exact"}
    return Load(port=port, exchanges=exchanges, **{**defaults, **options})


# The other quirks write a message as one frame, or as very many.
LARGE_QUIRKS = ("none", "window", "table", "few_streams")


@pytest.mark.parametrize(
    ("quirk", "exchanges", "count"),
    [(quirk, SMALL, 400) for quirk in stand_in.QUIRKS] + [(quirk, LARGE, 60) for quirk in LARGE_QUIRKS],
    ids=[f"{quirk}-small" for quirk in stand_in.QUIRKS] + [f"{quirk}-large" for quirk in LARGE_QUIRKS],
)
def test_legal_answers_of_any_form_are_good(quirk: str, exchanges: list[Exchange], count: int) -> None:
    with standing_in("--quirk", quirk) as port:
        figures = loadgen.run(echo_load(port, exchanges, count=count), sanitized=True)
    assert figures.failures == 0, figures.examples
    assert figures.calls >= count
    assert figures.compared >= figures.calls
    assert figures.in_flight_reached == (4 if quirk == "few_streams" else 8)
    assert figures.latency_us.min <= figures.latency_us.p50 <= figures.latency_us.p99 <= figures.latency_us.max


EXPECTED_KINDS = {
    "grpc_status": "grpc_status",
    "no_status": "grpc_status",
    "http_status": "http_status",
    "reset": "reset",
    "value": "value",
    "length": "length",
    "empty": "length",
}


@pytest.mark.parametrize(("fault", "kind"), EXPECTED_KINDS.items())
def test_every_spoiled_answer_is_counted(fault: str, kind: str) -> None:
    with standing_in("--fault", fault, "--every", "10") as port:
        figures = loadgen.run(echo_load(port, connections=1), sanitized=True)
    calls = figures.calls + figures.failures
    assert set(figures.failures_by_kind) == {kind}
    assert abs(figures.failures - calls / 10) <= 2
    assert figures.latency_us.count <= figures.calls + 8  # only good calls have a latency


def test_status_and_message_are_shown() -> None:
    with standing_in("--fault", "grpc_status") as port:
        figures = loadgen.run(echo_load(port, connections=1, count=0, duration_s=0.2), sanitized=True)
    assert figures.calls == 0
    assert figures.failures_by_grpc_status == {"8": figures.failures}
    assert figures.examples == {"grpc_status": "grpc-status 8: lane full"}


@pytest.mark.parametrize(("fault", "kind"), [("close", "closed"), ("goaway", "goaway"), ("garbage", "protocol")])
def test_a_lost_connection_fails_its_calls_and_another_is_made(fault: str, kind: str) -> None:
    with standing_in("--fault", fault, "--every", "50") as port:
        figures = loadgen.run(echo_load(port, extra=["--reconnect"]), sanitized=True)
    assert figures.calls >= 400
    assert figures.failures_by_kind.get(kind, 0) > 0
    assert set(figures.failures_by_kind) <= {kind, "closed"}


def test_without_reconnect_the_run_ends_when_all_connections_are_lost() -> None:
    with standing_in("--fault", "close", "--every", "50") as port:
        figures = loadgen.run(echo_load(port, count=100_000), sanitized=True)
    assert 0 < figures.calls < 200
    assert figures.failures_by_kind["closed"] >= 2


def test_calls_without_an_answer_are_counted() -> None:
    with standing_in("--fault", "silent", "--every", "100") as port:
        figures = loadgen.run(
            echo_load(port, connections=1, count=0, duration_s=0.3, extra=["--drain_s=0.2"]), sanitized=True
        )
    assert figures.failures_by_kind == {"unanswered": 8}  # each lost answer holds its place until all are held


def test_open_loop_keeps_its_rate_and_counts_from_the_intended_start() -> None:
    with standing_in() as port:
        load = echo_load(port, rate=2000.0, in_flight=100, count=0, duration_s=1.0, warmup_s=0.1)
        figures = loadgen.run(load, sanitized=True)
    assert figures.failures == 0
    assert 1500 < figures.latency_us.count < 2500  # Poisson: 2000 ± 45 (one standard deviation)
    assert figures.start_delay_us.count == figures.latency_us.count
    assert figures.latency_us.max >= figures.start_delay_us.max


def test_open_loop_charges_a_stalled_server() -> None:
    """A server that never answers one connection's calls fills the bound; all later arrivals are unanswered."""
    with standing_in("--fault", "silent") as port:
        load = echo_load(
            port, rate=1000.0, in_flight=4, connections=1, count=0, duration_s=0.3, extra=["--drain_s=0.1"]
        )
        figures = loadgen.run(load, sanitized=True)
    assert figures.calls == 0
    assert figures.failures > 100


def test_calls_held_back_by_the_bound_are_counted() -> None:
    with standing_in("--fault", "silent", "--every", "100") as port:
        load = echo_load(port, rate=1000.0, in_flight=2, connections=1, count=0, duration_s=0.5,
                         extra=["--drain_s=0.1"])  # fmt: skip
        held = loadgen.run(load, sanitized=True)
    assert held.failures > 0
    assert held.held_back > 0
    with standing_in() as port:
        free = loadgen.run(echo_load(port, rate=500.0, in_flight=200, count=0, duration_s=0.3), sanitized=True)
    assert free.held_back == 0


def test_waking_seldom_keeps_the_rate() -> None:
    """And the delay that it brings counts as latency."""
    with standing_in() as port:
        load = echo_load(port, rate=2000.0, in_flight=200, count=0, duration_s=1.0, tick_us=20_000.0)
        figures = loadgen.run(load, sanitized=True)
    assert figures.failures == 0
    assert 1500 < figures.latency_us.count < 2500
    assert figures.start_delay_us.p50 > 2_000
    assert figures.latency_us.p50 > figures.start_delay_us.p50 * 0.9


def test_slices_tell_when() -> None:
    opened: list[float] = []
    with standing_in("--fault", "grpc_status", "--every", "10") as port:
        load = echo_load(port, rate=2000.0, in_flight=200, count=0, warmup_s=0.1, duration_s=0.5, slice_ms=100.0)
        figures = loadgen.run(load, sanitized=True, at_start=lambda: opened.append(time.monotonic()))
    slices = figures.slices
    assert slices.ms == 100.0
    assert all(len(column) == 5 for column in (slices.good, slices.failed, slices.p50, slices.p99, slices.max))
    assert sum(slices.good) == figures.latency_us.count
    assert 0 < sum(slices.failed) <= figures.failures  # which are of the warm-up, too
    assert all(0 < p50 <= p99 <= top for p50, p99, top in zip(slices.p50, slices.p99, slices.max, strict=True))
    assert max(slices.max) == pytest.approx(figures.latency_us.max)
    assert figures.window_from_s == pytest.approx(opened[0], abs=5.0)
    assert figures.window_from_s <= opened[0]


def test_a_call_that_is_not_answered_by_its_deadline_is_given_up() -> None:
    """One answer in ten never comes: those are late, and no other; their places are free again."""
    with standing_in("--fault", "silent", "--every", "10") as port:
        load = echo_load(port, rate=1000.0, in_flight=400, count=0, duration_s=0.6, deadline_ms=100.0,
                         extra=["--drain_s=1"])  # fmt: skip
        figures = loadgen.run(load, sanitized=True)
    assert set(figures.failures_by_kind) == {"late"}
    assert figures.due == figures.latency_us.count + figures.late
    assert 20 < figures.late < 120  # of 600, Poisson
    assert figures.unsent == 0
    assert figures.in_flight_reached < 400
    assert figures.latency_us.max <= 100_000


def test_calls_for_which_there_is_no_room_before_their_deadline_are_late() -> None:
    with standing_in("--fault", "silent") as port:
        load = echo_load(port, rate=500.0, in_flight=8, connections=2, count=0, duration_s=0.5, deadline_ms=50.0,
                         extra=["--drain_s=1"])  # fmt: skip
        figures = loadgen.run(load, sanitized=True)
    assert figures.calls == 0
    assert figures.late == figures.due > 100
    assert figures.unsent <= figures.late


def test_what_a_socket_does_not_take_is_not_begun() -> None:
    """As gRPC's clients: no call has its HEADERS sent and is given up before its message is."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    received = bytearray()
    is_over = Event()

    def serve() -> None:
        sock = listener.accept()[0]
        with sock:
            many = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 100_000, frames.SETTINGS_INITIAL_WINDOW_SIZE: 2**31 - 1}
            sock.sendall(frames.settings(many) + frames.window_update(0, 2**31 - 65_536) + frames.SETTINGS_ACK)
            received.extend(sock.recv(1_000_000))
            is_over.wait(20)
            while data := sock.recv(1_000_000):
                received.extend(data)

    thread = Thread(target=serve)
    thread.start()
    messages = [Exchange(bytes(10_000), bytes(10_000))]
    load = echo_load(listener.getsockname()[1], messages, rate=4_000.0, connections=1, in_flight=100_000, count=0,
                     duration_s=1.0, deadline_ms=100.0, extra=["--drain_s=0.5"])  # fmt: skip
    figures = loadgen.run(load, sanitized=True, at_end=is_over.set)
    thread.join()
    listener.close()
    begun, whole, at = 0, 0, len(frames.PREFACE)
    while at + 9 <= len(received):
        head, flags, _ = frames.FRAME_HEADER.unpack_from(received, at)
        at += 9 + (head >> 8)
        begun += head & 255 == frames.HEADERS
        whole += head & 255 == frames.DATA and flags == frames.END_STREAM
    assert figures.unsent > 1_000  # 4,000 less what the buffers hold
    assert begun > 100
    assert begun - whole <= 3


def test_refusals_are_timed_and_are_not_late() -> None:
    with standing_in("--fault", "grpc_status", "--every", "4") as port:
        load = echo_load(port, rate=1000.0, in_flight=100, count=0, duration_s=0.5, deadline_ms=5_000.0)
        figures = loadgen.run(load, sanitized=True)
    assert figures.refused_us.count == figures.refused_by_grpc_status["8"] > 50
    assert figures.due == figures.latency_us.count + figures.refused_us.count
    assert figures.late == 0


def test_the_rate_may_change_inside_the_window() -> None:
    with standing_in() as port:
        load = echo_load(port, rate=2000.0, in_flight=200, count=0, duration_s=1.0, slice_ms=500.0, later_s=0.5,
                         later_rate=200.0)  # fmt: skip
        figures = loadgen.run(load, sanitized=True)
    before, after = figures.slices.good
    assert 800 < before < 1200
    assert 50 < after < 160


def test_which_of_several_answers_came_is_counted() -> None:
    wrong = bytes(300)
    exchanges = [
        Exchange(b"a" * 300, wrong, (b"a" * 300,)),
        Exchange(b"b" * 300, b"b" * 300, (wrong,)),
        Exchange(b"c" * 300, wrong, (wrong, b"c" * 300)),
    ]
    with standing_in() as port:
        figures = loadgen.run(echo_load(port, exchanges, count=300), sanitized=True)
        assert figures.failures == 0
        assert len(figures.met) == 3
        assert sum(figures.met) >= 300
        assert max(figures.met) - min(figures.met) <= 8
        neither = [Exchange(b"a" * 300, wrong, (wrong,))]
        spoiled = loadgen.run(echo_load(port, neither, count=0, duration_s=0.1), sanitized=True)
    assert set(spoiled.failures_by_kind) == {"value"}


def test_the_measured_window_is_announced() -> None:
    seen: list[str] = []
    with standing_in() as port:
        load = echo_load(port, count=0, duration_s=0.2, warmup_s=0.1)
        figures = loadgen.run(load, at_start=lambda: seen.append("start"), at_end=lambda: seen.append("end"))
    assert seen == ["start", "end"]
    assert figures.seconds == pytest.approx(0.2, rel=0.5)


def test_nobody_listens() -> None:
    with pytest.raises(loadgen.LoadError, match="0 of 2 connections"):
        loadgen.run(echo_load(1, extra=["--connect_s=0.1"]), sanitized=True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--port=1"], "--request is missing"),
        (["--port=1", "--expect=x"], "--expect comes behind"),
        (["--port=1", "--request=/nowhere"], "cannot open /nowhere"),
        (["--duration_s=soon"], "--duration_s=soon is not a number"),
        (["--in_flight=0"], "--in_flight=0 is not a number of at least 1"),
        (["--order=backwards"], "turn or random"),
        (["--port=1", "--request=/dev/null", "--slice_ms=10", "--count=5"], "--slice_ms goes with --duration_s"),
        (["--port=1", "--request=/dev/null", "--slice_ms=0.001"], "more than 100000 slices"),
        (["more"], "what is more?"),
    ],
)
def test_mistakes_are_named(options: list[str], why: str) -> None:
    outcome = subprocess.run([loadgen.build(), *options], capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert why in outcome.stderr


def test_against_grpcio() -> None:
    """grpcio's server has its own header compression, flow control and pings."""
    seen: list[tuple[bytes, float | None]] = []

    def echo(request: bytes, context: Any) -> bytes:
        seen.append((request, context.time_remaining()))
        if request == b"refuse":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model\n%")
        return request

    path = "/tensorflow.serving.PredictionService/Predict"
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(path.split("/")[1], {"Predict": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        good = loadgen.run(
            echo_load(port, [*SMALL, *LARGE], extra=["--grpc_timeout=20S", "--order=random"]), sanitized=True
        )
        assert good.failures == 0, good.examples
        assert good.calls >= 400
        remaining = seen[0][1]
        assert remaining is not None
        assert 0 < remaining <= 20
        assert {request for request, _ in seen} == {exchange.request for exchange in [*SMALL, *LARGE]}
        refused = loadgen.run(echo_load(port, [Exchange(b"refuse")], count=0, duration_s=0.2), sanitized=True)
        assert refused.failures_by_grpc_status == {"5": refused.failures}
        unknown = loadgen.run(echo_load(port, path="/a/b", count=0, duration_s=0.2), sanitized=True)
        assert unknown.failures_by_grpc_status == {"12": unknown.failures}
    finally:
        server.stop(None)


class RestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 404 if self.path != "/v1/models/mlp:predict" else 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if body == b'{"instances": "close"}':
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_rest() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), RestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    body = b'{"instances": [[1.0, 2.5]]}'
    large = b'{"instances": [' + b"1.5, " * 400_000 + b"0]}"
    exchanges = [Exchange(body, b'{"instances":[[1.00001,2.5]]}'), Exchange(large, large)]
    try:
        options: dict[str, Any] = {"rest": True, "compare": None, "path": "/v1/models/mlp:predict", "in_flight": 3}
        good = loadgen.run(echo_load(port, exchanges, **{**options, "count": 50}), sanitized=True)
        assert good.failures == 0, good.examples
        assert good.compared >= 50
        wrong = loadgen.run(
            echo_load(
                port, [Exchange(body, b'{"instances": [[1.0, 2.6]]}')], **{**options, "count": 0, "duration_s": 0.2}
            ),
            sanitized=True,
        )
        assert wrong.examples == {"value": "token 7 is 2.5, expected 2.6"}
        absent = loadgen.run(
            echo_load(port, **{**options, "path": "/other", "count": 0, "duration_s": 0.2}), sanitized=True
        )
        assert set(absent.failures_by_kind) == {"http_status"}
        assert absent.examples["http_status"].startswith("HTTP status 404: ")
        closing = [Exchange(b'{"instances": "close"}')]
        closed = loadgen.run(
            echo_load(port, closing, **{**options, "count": 50, "extra": ["--reconnect"]}), sanitized=True
        )
        assert closed.calls >= 50
        assert closed.failures == 0
    finally:
        server.shutdown()
        server.server_close()
