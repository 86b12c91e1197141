"""Clients that go, seen from outside: their requests leave the queue, never run, and hold nothing any more.

The model `held` has room for five requests and waits for batches of 64 rows, so that a test says when a batch goes. How
many rows a model has ever answered is what the broker counts when batches are over (`ringserve_batch_rows_sum`).
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until
from tests.e2e.test_deadlines import GIVEN_UP, ring_bytes, slow_request
from tests.e2e.test_metrics import samples_of, value_of

CONFIG = """
[server]
rest_timeout_ms = 0
[workers]
workers = 1
[[models]]
name = "held"
base_path = "{models}/ragged"
[models.batching]
policy = "timeout"
row_independence = "assumed"  # its rows say how many there were in their batch
batch_wait_us_max = 600000000
batch_rows_max = 64
queue_requests_max = 5
[[models]]
name = "slow"
base_path = "{models}/slow"
"""
ROOM = 5
FULL = 64
LONG_S = 120
LONG_TURNS = 200_000  # of `slow`: most of a second or more
CLIENT = """
import sys, grpc
call = grpc.insecure_channel(sys.argv[1]).unary_unary("/tensorflow.serving.PredictionService/Predict")
calls = [call.future(sys.stdin.buffer.read()) for _ in range(int(sys.argv[2]))]
print("sent", flush=True)
calls[0].result()
"""


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.toml").write_text(CONFIG.format(models=models))
    with Server(folder, "--config", str(folder / "server.toml")) as server:
        for name in ("held", "slow"):
            server.wait_available(name)
        yield server


@pytest.fixture
def stub(server: Server) -> Iterator[Any]:
    """A client. After each test nobody is left, and every record of every request has come back."""
    with grpc.insecure_channel(server.grpc_target) as channel:
        yield prediction_grpc.PredictionServiceStub(channel)
        wait_until(lambda: not ring_bytes(server) and not queued(server), "the queues and request rings to be empty")


def queued(server: Server, model: str = "held") -> float:
    return value_of(samples_of(server), "ringserve_queue_requests", model=model, version="1")


def rows_run(server: Server, model: str = "held") -> float:
    """Rows of batches that are over, ever."""
    return value_of(
        samples_of(server), "ringserve_batch_rows_sum", model=model, version="1", signature="serving_default"
    )


def running(server: Server, model: str) -> float:
    """Batches that workers hold."""
    return value_of(samples_of(server), "ringserve_batches_running", model=model, version="1")


def given_up(server: Server, where: str, model: str = "held") -> float:
    return value_of(samples_of(server), GIVEN_UP, model=model, version="1", why="cancelled", where=where)


def rows(count: int) -> Any:
    return make_request("held", x=np.ones((count, 3), np.float32))


def fill(stub: Any, count: int) -> list[Any]:
    return [stub.Predict.future(rows(1), timeout=LONG_S) for _ in range(count)]


def a_whole_batch(server: Server, stub: Any, before: float) -> None:
    """One that goes at once is taken, and is all that was run since `before`."""
    assert set(outputs_of(stub.Predict(rows(FULL), timeout=LONG_S))["batch"].tolist()) == {FULL}
    wait_until(lambda: rows_run(server) >= before + FULL, "its rows to be counted")
    assert rows_run(server) == before + FULL, "cancelled rows were run"


class RestClient:
    """A request for `held` over a socket of its own."""

    def __init__(self, server: Server, count: int, times: int = 1) -> None:
        host, port = server.rest_url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=LONG_S)
        body = json.dumps({"instances": [[1.0, 1.0, 1.0]] * count}).encode()
        head = b"POST /v1/models/held:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        self.socket.sendall((head % len(body) + body) * times)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def answer(self) -> bytes:
        with contextlib.closing(self.socket), self.socket.makefile("rb") as file:
            while (line := file.readline()).startswith(b"HTTP/1.1 100"):
                assert file.readline() == b"\r\n"
            return line


# ------------------------------------------------------------------------------------------------------------ gRPC


def test_a_queue_full_of_cancelled_calls_takes_the_next_one_at_once(server: Server, stub: Any) -> None:
    """On one connection: no wait between the resets and the new call, which must not find the queue full."""
    before, counted = rows_run(server), given_up(server, "queued")
    calls = fill(stub, ROOM)
    wait_until(lambda: queued(server) == ROOM, "the queue to be full")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(rows(FULL), timeout=LONG_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for call in calls:
        call.cancel()
    a_whole_batch(server, stub, before)
    wait_until(lambda: given_up(server, "queued") == counted + ROOM, "them to be counted")


def test_a_killed_client(server: Server, stub: Any) -> None:
    before = rows_run(server)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.grpc_target, str(1)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin is not None
    client.stdin.write(rows(1).SerializeToString())
    client.stdin.close()
    wait_until(lambda: queued(server) == 1, "its request to be queued")
    client.kill()
    client.wait(60)
    assert client.stdout is not None
    client.stdout.close()
    wait_until(lambda: queued(server) == 0, "its request to be gone")
    a_whole_batch(server, stub, before)


def test_what_runs_is_finished_and_dropped(server: Server, stub: Any) -> None:
    counted = given_up(server, "running", "slow")
    call = stub.Predict.future(slow_request(LONG_TURNS), timeout=LONG_S)
    wait_until(lambda: running(server, "slow") == 1, "it to run")
    call.cancel()
    wait_until(lambda: given_up(server, "running", "slow") == counted + 1, "it to be counted")
    wait_until(lambda: not ring_bytes(server), "its record to come back")
    assert outputs_of(stub.Predict(slow_request(3), timeout=LONG_S))["y"] == 3.0


def test_a_request_in_parts_of_which_one_runs(server: Server, stub: Any) -> None:
    """The parts that wait are gone at once, and what runs is not waited for by others' queues."""
    before = rows_run(server)
    wide = stub.Predict.future(rows(FULL // 2), timeout=LONG_S)
    wait_until(lambda: queued(server) == 1, "it to wait for its batch")
    split = stub.Predict.future(rows(3 * FULL), timeout=LONG_S)  # two and a half batches of its own
    assert len(outputs_of(wide.result())["sum"]) == FULL // 2
    wait_until(lambda: rows_run(server) >= before + 3 * FULL, "its full batches to run")
    split.cancel()
    wait_until(lambda: queued(server) == 0, "its rest to be gone")
    a_whole_batch(server, stub, rows_run(server))


# ------------------------------------------------------------------------------------------------------------ REST


@pytest.mark.parametrize("end", ["reset", "close"])
def test_rest_clients_that_go(server: Server, stub: Any, end: str) -> None:
    before = rows_run(server)
    clients = [RestClient(server, 1) for _ in range(ROOM)]
    wait_until(lambda: queued(server) == ROOM, "the queue to be full")
    for client in clients:
        client.reset() if end == "reset" else client.socket.close()
    wait_until(lambda: queued(server) == 0, "the queue to be empty")
    a_whole_batch(server, stub, before)


def test_a_rest_client_that_sent_more_than_one_request(server: Server, stub: Any) -> None:
    """What it sent ahead stays unread, and reading has stopped; that it has gone is noticed all the same."""
    before = rows_run(server)
    client = RestClient(server, 1, times=20)
    wait_until(lambda: queued(server) == 1, "the first of its requests to be queued")
    client.socket.close()
    wait_until(lambda: queued(server) == 0, "it to be gone")
    a_whole_batch(server, stub, before)


def test_a_rest_client_that_only_stops_sending_is_answered(server: Server, stub: Any) -> None:
    before = rows_run(server)
    client = RestClient(server, 1)
    client.socket.shutdown(socket.SHUT_WR)
    wait_until(lambda: queued(server) == 1, "it to be queued")
    assert len(outputs_of(stub.Predict(rows(FULL - 1), timeout=LONG_S))["sum"]) == FULL - 1
    assert b" 200 " in client.answer()
    wait_until(lambda: rows_run(server) == before + FULL, "its rows to be counted, for those who count next")


# ---------------------------------------------------------------------------------------- and processes that end


def test_a_cancel_holds_although_the_broker_is_replaced(server: Server, stub: Any) -> None:
    before = rows_run(server)
    calls = fill(stub, 3)
    wait_until(lambda: queued(server) == 3, "them to be queued")
    (broker,) = server.members("broker")
    broker.send_signal(signal.SIGSTOP)
    for call in calls[:2]:
        call.cancel()
    broker.kill()
    wait_until(lambda: [each for each in server.members("broker") if each.pid != broker.pid], "the next broker")
    assert len(outputs_of(stub.Predict(rows(FULL - 1), timeout=LONG_S))["sum"]) == FULL - 1
    assert set(outputs_of(calls[2].result())["batch"].tolist()) == {FULL}
    wait_until(lambda: rows_run(server) >= before + FULL, "the rows to be counted")
    assert rows_run(server) == before + FULL, "cancelled rows were run"


def test_a_cancelled_request_is_not_tried_again_when_its_worker_ends(server: Server, stub: Any) -> None:
    before = rows_run(server, "slow")
    call = stub.Predict.future(slow_request(100 * LONG_TURNS), timeout=LONG_S)
    wait_until(lambda: running(server, "slow") == 1, "it to run")
    counted = given_up(server, "running", "slow")
    call.cancel()
    wait_until(lambda: given_up(server, "running", "slow") == counted + 1, "the broker to know")
    (worker,) = server.members("worker")
    worker.kill()
    assert outputs_of(stub.Predict(slow_request(3), timeout=LONG_S))["y"] == 3.0
    wait_until(lambda: rows_run(server, "slow") > before, "its row to be counted")
    assert rows_run(server, "slow") == before + 1, "the cancelled one ran again"


def test_requests_that_wait_for_a_worker_at_all(server: Server, stub: Any) -> None:
    before, counted = rows_run(server), given_up(server, "loading")
    (pool,), (worker,) = server.members("pool"), server.members("worker")
    pool.send_signal(signal.SIGSTOP)  # it makes no new worker
    try:
        worker.kill()
        wait_until(lambda: f"left (process {worker.pid})" in server.log, "the broker to know")
        calls = fill(stub, ROOM)
        wait_until(lambda: queued(server) == ROOM, "them to be queued")
        for call in calls:
            call.cancel()
        wait_until(lambda: given_up(server, "loading") == counted + ROOM, "them to be counted")
        assert queued(server) == 0
    finally:
        pool.send_signal(signal.SIGCONT)
    a_whole_batch(server, stub, before)
