"""The open-loop load: its times, its counting from when a request was due, and what it says of itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ringserve.cli import main
from ringserve.commands.bench import _remarks, as_dict, report
from ringserve.commands.bench_load import Measured, RestCaller, due_times, percentile, run_load


def test_times_are_as_asked_for() -> None:
    assert list(due_times(4, 1.0, steady=True, seed=1)) == [0.25, 0.5, 0.75]
    times = list(due_times(1000, 20, steady=False, seed=3))
    assert times == list(due_times(1000, 20, steady=False, seed=3))
    assert times == sorted(times)
    assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Exponential: as much deviation as mean.
    mean = sum(gaps) / len(gaps)
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.05)


def test_percentiles() -> None:
    values = list(range(1, 1001))
    assert [percentile(values, each) for each in (0, 50, 99, 99.9, 100)] == [1, 500, 990, 999, 1000]
    assert percentile([7], 50) == 7
    assert math.isnan(percentile([], 99))


class Stalling:
    """Answers nothing until `held` requests wait; then all at once."""

    def __init__(self, held: int) -> None:
        self._held, self._gate = held, asyncio.Event()
        self.waiting = 0

    async def call(self) -> str:
        self.waiting += 1
        if self.waiting >= self._held:
            self._gate.set()
        await self._gate.wait()
        return ""

    async def close(self) -> None:
        pass


def test_a_stall_is_charged_with_all_that_it_held_up() -> None:
    """Requests go on coming while none is answered, and each has waited at least until the last of them was due."""
    times = list(due_times(200, 0.25, steady=True, seed=1))

    async def run() -> Measured:
        return await run_load(Stalling(len(times)), 200, 0.25, steady=True)

    measured = asyncio.run(run())
    assert measured.sent == len(times)
    found = sorted(measured.latencies_ns, reverse=True)
    assert all(took >= (times[-1] - due) * 1e9 - 1000 for took, due in zip(found, times, strict=True))


class Quick(BaseHTTPRequestHandler):
    """A model server of one kind of answer."""

    protocol_version = "HTTP/1.1"
    chunked = False
    status = 200
    bodies: Counter[bytes] = Counter()  # noqa: RUF012  (of the one test at a time)

    def do_GET(self) -> None:
        tensor = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "2"}]}, "name": "x:0"}
        signature = {"inputs": {"x": tensor}, "outputs": {}, "method_name": "tensorflow/serving/predict"}
        signatures = {"signature_def": {"serving_default": signature}}
        self._answer(200, json.dumps({"metadata": {"signature_def": signatures}}).encode())

    def do_POST(self) -> None:
        Quick.bodies[self.rfile.read(int(self.headers["Content-Length"]))] += 1
        self._answer(self.status, b'{"predictions": [1]}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Quick, "bodies", Counter())
    monkeypatch.setattr(Quick, "chunked", False)
    monkeypatch.setattr(Quick, "status", 200)
    with ThreadingHTTPServer(("127.0.0.1", 0), Quick) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.parametrize("chunked", [False, True])
def test_every_request_is_sent_and_counted(server: str, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quick, "chunked", chunked)
    done = bench(server, "--model", "m", "--rate", "100,50", "--duration", 0.5, "--warm_up", 0, "--steady", "--json")
    assert done.exit_code in (0, 3), done.output  # 3: this machine is busy, and it says that it was late
    results = json.loads(done.stdout)["results"]
    assert [result["sent"] for result in results] == [49, 24]
    assert [result["answered"] for result in results] == [49, 24]
    ((body, count),) = Quick.bodies.items()
    assert count == 49 + 24 + 1  # the first finds out whether it works at all
    assert [len(row) for row in json.loads(body)["inputs"]["x"]] == [2]
    latency = results[0]["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]


def test_a_body_of_one_s_own(server: str) -> None:
    done = bench(server, "--model", "m", "--body", "[[5, 6]]", "--duration", 0.1, "--warm_up", 0, "--rows", 3)
    assert done.exit_code in (0, 3)
    assert set(Quick.bodies) == {b'{"instances": [[5, 6]]}'}
    assert "ANSWERED" in done.output


def test_a_server_that_refuses_ends_it(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Quick, "status", 503)
    done = bench(server, "--model", "m", "--duration", 0.1)
    assert (done.exit_code, "HTTP 503" in done.output) == (1, True)


def test_a_limit_that_is_broken_and_mistakes(server: str) -> None:
    done = bench(server, "--model", "m", "--duration", 0.2, "--warm_up", 0, "--p99_ms_max", 0)
    assert (done.exit_code, "above 0 ms" in done.output) == (3, True)
    assert bench("http://127.0.0.1:1", "--model", "m").exit_code == 69
    assert bench("ftp://x", "--model", "m").exit_code == 2
    assert bench(server, "--model", "m", "--rate", "0").exit_code == 2
    assert bench(server, "--model", "m", "--version", 1, "--label", "a").exit_code == 2
    assert bench(server).exit_code == 2


def test_connections_are_used_again_and_end_in_words(server: str) -> None:
    host, _, port = server.removeprefix("http://").partition(":")

    async def run() -> list[str]:
        caller = RestCaller(host, int(port), "/v1/models/m:predict", b"{}", connections_max=2, timeout_s=5)
        answers = await asyncio.gather(*(caller.call() for _ in range(10)))
        await caller.close()
        nobody = RestCaller("127.0.0.1", 1, "/", b"", connections_max=1, timeout_s=5)
        return [*answers, await nobody.call()]

    *good, bad = asyncio.run(run())
    assert good == [""] * 10
    assert bad.startswith("connection: ")


def test_what_it_says_of_itself() -> None:
    measured = Measured(100.0, 1.0, sent=4)
    measured.latencies_ns.extend([1_000_000, 2_000_000, 30_000_000])
    measured.late_ns.extend([1000] * 4)
    measured.failures["HTTP 503"] = 1
    assert _remarks(measured, 30) == ["at 100/s 1 of 4 requests failed: 1 × HTTP 503"]
    assert "the 99th percentile is 30 ms, above 29 ms" in _remarks(measured, 29)[1]
    measured.late_ns.extend([20_000_000] * 4)
    assert "this program was late itself (99 of 100 requests within 20 ms" in _remarks(measured, None)[1]
    assert as_dict(measured)["latency_ms"]["p50"] == 2.0
    assert as_dict(Measured(1.0, 1.0))["latency_ms"]["max"] is None
    assert "30 ms" in report([measured])
