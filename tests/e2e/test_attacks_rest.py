"""Goal: no client of the REST port can crash a frontend, fill its memory or keep it from serving others. Method: as in
`test_attacks_http2.py`; the honest clients call over gRPC and over REST, on the same frontend.
"""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.attackers import MIB, Attacker, arguments, bounded
from tests.e2e.server import Server, wait_until
from tests.e2e.traffic import Traffic

LIMITS = {
    "client_stall_ms_max": "3000",
    "inflated_bytes_max": "16MiB",
    "held_bytes_max": "32MiB",
    "rest_body_bytes_max": "16MiB",
    "connections_max": "200",
    "connections_per_address_max": "150",
}
#: What the honest clients call, and what the attackers call: full queues of a model are not what is tried here.
HONEST_PATH = "/v1/models/half:predict"
PATH = b"/v1/models/echo:predict"
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\n" % PATH


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), *arguments(models, LIMITS)) as server:
        server.wait_available("half")
        server.wait_available("echo")
        yield server


@contextmanager
def honest(server: Server) -> Iterator[None]:
    """Clients that call over both protocols all the time; each of their calls must be answered rightly."""
    stop = threading.Event()
    wrong: list[object] = []
    answered = threading.Semaphore(0)

    def call() -> None:
        connection = http.client.HTTPConnection(_place(server), timeout=60)
        while not stop.is_set():
            connection.request("POST", HONEST_PATH, b'{"instances":[1.0,4.0]}')
            response = connection.getresponse()
            body = response.read()
            if response.status != 200 or json.loads(body) != {"predictions": [2.5, 4.0]}:
                wrong.append((response.status, body))
            answered.release()
            stop.wait(0.01)  # as Traffic
        connection.close()

    with Traffic(server, "half", 2), ThreadPoolExecutor(1) as pool:
        calling = pool.submit(call)
        try:
            for _ in range(20):
                assert answered.acquire(timeout=60)
            yield
        finally:
            stop.set()
        calling.result()
    assert not wrong


def _place(server: Server) -> str:
    return urlsplit(server.rest_url).netloc


def ask(server: Server, body: bytes, headers: dict[str, str] | None = None) -> int:
    """The status of a predict on a connection of its own."""
    connection = http.client.HTTPConnection(_place(server), timeout=150)
    connection.request("POST", PATH.decode(), body, headers or {})
    status = connection.getresponse().status
    connection.close()
    return status


def at_once(server: Server, count: int, body: bytes, headers: dict[str, str] | None = None) -> set[int]:
    """The statuses of that many equal requests, all sent at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return {future.result() for future in [pool.submit(ask, server, body, headers) for _ in range(count)]}


def test_gzip_bombs(server: Server) -> None:
    """40 bodies of 15 MiB in 15 KiB at a time, whose text is not even JSON: two are expanded at a time."""
    bomb = gzip.compress(b"[" * (15 * MIB))
    with honest(server), bounded(server, 250 * MIB):
        assert at_once(server, 40, bomb, {"Content-Encoding": "gzip"}) == {400}


def test_gzip_bombs_beyond_the_limit(server: Server) -> None:
    bomb = gzip.compress(b" " * (200 * MIB))
    with honest(server), bounded(server, 80 * MIB):
        assert at_once(server, 20, bomb, {"Content-Encoding": "gzip"}) == {400}


DEEP = 400_000
JSON_BOMBS: dict[str, bytes] = {
    "arrays in arrays": b'{"instances":' + b"[" * DEEP,
    "arrays in arrays, closed": b'{"instances":' + b"[" * (DEEP // 2) + b"1" + b"]" * (DEEP // 2) + b"}",
    "objects in objects": b'{"a":' * (DEEP // 5),
    "objects in objects, closed": b'{"a":' * (DEEP // 6) + b"1" + b"}" * (DEEP // 6),
    "many empty arrays": b'{"instances":[' + b"[]," * (DEEP // 3) + b"[]]}",
    "many objects": b'{"instances":[' + b"{}," * (DEEP // 3) + b"{}]}",
    "many keys": b'{"inputs":{' + b",".join(b'"%d":1' % number for number in range(40_000)) + b"}}",
    "equal keys": b"{" + b'"inputs":1,' * (DEEP // 11) + b'"inputs":1}',
    "a long key": b'{"' + b"k" * DEEP + b'":1}',
    "a long string": b'{"instances":["' + b"s" * DEEP + b'"]}',
    "a long number": b'{"instances":[' + b"9" * DEEP + b"]}",
    "a long exponent": b'{"instances":[1e' + b"9" * DEEP + b"]}",
    "a long fraction": b'{"instances":[0.' + b"1" * (DEEP // 8) + b', "x"]}',
    "escapes": b'{"instances":["' + b"\\u0000" * (DEEP // 6) + b'"]}',
    "lone surrogates": b'{"instances":["' + b"\\ud800" * (DEEP // 24) + b'"]}',
    "not a number": b'{"instances":[' + b"NaN," * (DEEP // 32) + b'"x"]}',
    "bytes that are no UTF-8": b'{"instances":["' + b"\xff" * DEEP + b'"]}',
    "white space": b" " * DEEP,
    "numbers": b'{"instances":[' + b"1," * (DEEP // 2) + b'"x"]}',
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_json_bombs(server: Server, name: str) -> None:
    """Texts that cost a parser most, larger than what is read on the event loop; three at a time."""
    with honest(server), bounded(server, 200 * MIB):
        assert at_once(server, 3, JSON_BOMBS[name]) <= {200, 400, 503, 429}


def test_clients_that_leave_while_their_bodies_wait_to_be_read(server: Server) -> None:
    """100 bodies of 1 MiB that only the slow parser can read, each client gone at once: none is kept for later."""
    body = b'{"instances":[NaN' + b", 1" * (MIB // 3) + b"]}"
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with honest(server), bounded(server, 150 * MIB):
        for _ in range(100):
            with Attacker(_place(server)) as attacker:
                assert attacker.send(request)


SLOW: dict[str, bytes] = {
    "half a head": b"GET / HTTP/1.1\r\nHost: a\r\n",
    "half a body": HEAD + b"Content-Length: 1000\r\n\r\nabc",
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
}


def test_slow_clients(server: Server) -> None:
    """100 clients that begin a request and stop: each is told so, and its connection is free again."""
    with honest(server), bounded(server, 40 * MIB), ExitStack() as stack:
        for name in ("half a body", "half a chunk"):
            attackers = [stack.enter_context(Attacker(_place(server))) for _ in range(50)]
            assert [attacker.send(SLOW[name]) for attacker in attackers] == [True] * 50
            assert {attacker.read()[:12] for attacker in attackers} == {b"HTTP/1.1 408"}


def test_bodies_that_are_held_together(server: Server) -> None:
    """20 bodies of 8 MiB but for their last byte: 32 MiB are held, the rest is refused."""
    request = HEAD + b"Content-Length: %d\r\n\r\n" % (8 * MIB) + bytes(8 * MIB - 1)
    with honest(server), bounded(server, 100 * MIB), ExitStack() as stack:
        attackers = [stack.enter_context(Attacker(_place(server))) for _ in range(20)]
        for attacker in attackers:
            attacker.send(request, 5.0)
        first_lines = [attacker.read()[:12] for attacker in attackers]
        assert first_lines.count(b"HTTP/1.1 408") <= 4
        assert set(first_lines) <= {b"HTTP/1.1 408", b"HTTP/1.1 503", b""}


def test_chunks_that_are_mostly_extensions(server: Server) -> None:
    with honest(server), bounded(server, 40 * MIB), Attacker(_place(server)) as attacker:
        attacker.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        attacker.flood(b"1;" + b"x" * 4_000 + b"\r\ny\r\n", 16 * MIB)
        assert attacker.read()[:12] in (b"HTTP/1.1 400", b"")


def test_chunks_of_one_byte(server: Server) -> None:
    """A body of 1 MiB in as many chunks is a body like any other."""
    with honest(server), bounded(server, 80 * MIB), Attacker(_place(server)) as attacker:
        assert attacker.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * MIB + b"0\r\n\r\n")
        wait_until(lambda: attacker.read_some().startswith(b"HTTP/1.1 400"), "the answer")


def test_a_body_without_end(server: Server) -> None:
    with honest(server), bounded(server, 80 * MIB), Attacker(_place(server)) as attacker:
        attacker.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        attacker.flood(b"10000\r\n" + bytes(65_536) + b"\r\n", 64 * MIB)
        assert attacker.read()[:12] in (b"HTTP/1.1 413", b"")


@pytest.mark.parametrize(
    "head",
    [b"GET /" + b"x" * 2**20, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200_000, b"\r\n" * 2**20],
    ids=["target", "headers", "empty lines"],
)
def test_a_head_without_end(server: Server, head: bytes) -> None:
    with honest(server), bounded(server, 40 * MIB), Attacker(_place(server)) as attacker:
        attacker.send(head)
        answer = attacker.read_some()
        assert answer[:12] in (b"HTTP/1.1 431", b"")


def test_pipelined_requests_whose_answers_nobody_reads(server: Server) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    with honest(server), bounded(server, 60 * MIB), Attacker(_place(server), receive_bytes=4_096) as attacker:
        attacker.flood(request * 10_000, 16 * MIB, 1.0)
        wait_until(lambda: not attacker.send(request, 1.0), "the connection to be ended")


def test_more_connections_than_one_address_may_have(server: Server) -> None:
    with honest(server), bounded(server, 40 * MIB), ExitStack() as stack:
        attackers = [stack.enter_context(Attacker(_place(server))) for _ in range(300)]
        for attacker in attackers:
            attacker.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = [attacker.read_some(0.05)[:12] for attacker in attackers]
        assert 100 <= answers.count(b"HTTP/1.1 200") <= 150
        assert set(answers) == {b"HTTP/1.1 200", b""}
