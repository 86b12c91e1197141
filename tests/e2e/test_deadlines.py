"""Deadlines seen from outside: official clients and raw sockets against a whole server.

The model `held` waits for batches that never fill, so that its requests stay queued; `slow` runs as long as it is told
to. What a client without a deadline is told at the server's own shows the answer, which a client with a deadline of
its own rarely sees: it gives up at the same moment.
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until
from tests.e2e.test_metrics import samples_of, value_of

CONFIG = """
[server]
grpc_timeout_ms = 400
rest_timeout_ms = 500
request_timeout_ms_max = 1500
[workers]
workers = 1
[[models]]
name = "held"
base_path = "{models}/ragged"
[models.batching]
policy = "timeout"
batch_wait_us_max = 60000000
[[models]]
name = "slow"
base_path = "{models}/slow"
"""
TIMED_OUT = "Timed out waiting for notification"
QUEUED = f"{TIMED_OUT}: the request was still queued"
RUNNING = f"{TIMED_OUT}: the request was running (or the broker too busy to say that it was not)"
LATE = f"{TIMED_OUT}: the deadline had passed before the request was read"
ROW = np.ones((1, 3), np.float32)
BODY = {"instances": [[1.0, 1.0, 1.0]]}
GIVEN_UP = "ringserve_given_up_requests_total"


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.toml").write_text(CONFIG.format(models=models))
    with Server(folder, "--config", str(folder / "server.toml")) as server:
        for name in ("held", "slow"):
            server.wait_available(name)
        yield server
        # Nobody is left, and every record of every request has come back.
        wait_until(lambda: not ring_bytes(server), "the request rings to be empty")


def ring_bytes(server: Server) -> float:
    """Bytes of requests that the frontends hold."""
    used = [value for (name, _), value in samples_of(server).items() if name == "ringserve_ring_used_bytes"]
    assert used
    return sum(used)


def given_up(server: Server, model: str, where: str) -> float:
    return value_of(samples_of(server), GIVEN_UP, model=model, version="1", why="expired", where=where)


def slow_request(turns: int) -> Any:
    return make_request("slow", x=np.zeros(1, np.float32), turns=np.array([turns], np.int32))


def failure(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), str(caught.value.details())


def post(server: Server, model: str, body: Any, timeout: str | None = None) -> tuple[int, str]:
    headers = {} if timeout is None else {"X-Request-Timeout": timeout}
    status, answer = server.post(f"/v1/models/{model}:predict", json.dumps(body).encode(), headers)
    return status, json.loads(answer).get("error", "")


def expired(ask: Callable[[], tuple[Any, str]], code: Any) -> None:
    """What waits in a queue ends with this code, and its text says so. (The broker has 2 ms to say it; on a machine
    that is busy with other things it may need more, but not each time.)"""

    def look() -> bool:
        found, text = ask()
        assert (found, text in (QUEUED, RUNNING)) == (code, True), (found, text)
        return text == QUEUED

    wait_until(look, "the broker to say that it was queued")


def test_a_call_without_a_deadline_has_the_servers(server: Server, stub: Any) -> None:
    before = given_up(server, "held", "queued")
    expired(lambda: failure(stub.Predict, make_request("held", x=ROW)), grpc.StatusCode.DEADLINE_EXCEEDED)
    wait_until(lambda: given_up(server, "held", "queued") > before, "it to be counted")


def test_a_client_may_ask_for_more_but_not_for_more_than_there_is(stub: Any) -> None:
    """Its own deadline of a minute is cut to 1.5 s."""
    request = make_request("held", x=ROW)
    expired(lambda: failure(stub.Predict, request, timeout=60), grpc.StatusCode.DEADLINE_EXCEEDED)


def test_the_clients_deadline_holds(server: Server, stub: Any) -> None:
    for timeout in (0.000_001, 0.001, 0.05):
        code, _ = failure(stub.Predict, make_request("held", x=ROW), timeout=timeout)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_deadline_that_passes_while_a_worker_runs(server: Server, stub: Any) -> None:
    before = given_up(server, "slow", "running")
    assert failure(stub.Predict, slow_request(1_500_000)) == (grpc.StatusCode.DEADLINE_EXCEEDED, RUNNING)
    wait_until(lambda: given_up(server, "slow", "running") == before + 1, "it to be counted")
    # The worker ends it, and what was dropped has harmed nobody.
    wait_until(lambda: not ring_bytes(server), "its record to come back")
    assert outputs_of(stub.Predict(slow_request(3), timeout=1))["y"] == 3.0


def test_rest(server: Server) -> None:
    for timeout in (None, "0.1", "100ms", "60", "1e5us"):
        expired(functools.partial(post, server, "held", BODY, timeout), 504)
    slow = {"instances": [{"x": 1.0, "turns": 300_000}]}
    status, text = post(server, "slow", slow, "50ms")
    assert (status, text.startswith(TIMED_OUT)) == (504, True)
    for timeout in ("0", "-1", "1m", "soon", ""):
        status, text = post(server, "held", BODY, timeout)
        assert status == 400
        assert text.startswith("X-Request-Timeout must be a number greater than 0")


def test_rest_a_body_that_comes_too_slowly_for_its_own_timeout(server: Server) -> None:
    """Its client's time counts from its head; the server's own would from when the request is there."""
    body = json.dumps(BODY).encode()
    head = b"POST /v1/models/held:predict HTTP/1.1\r\nHost: a\r\nX-Request-Timeout: 1us\r\nContent-Length: %d\r\n\r\n"
    address = server.rest_url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=60) as client:
        client.sendall(head % len(body))
        client.sendall(body)
        answer = client.recv(65_536)
    assert b" 504 " in answer.partition(b"\r\n")[0]
    assert LATE.encode() in answer
