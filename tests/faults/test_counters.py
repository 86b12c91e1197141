"""The books of a server: all that comes in ends once, as an answer, a refusal or a cancellation, and nothing stays.

Each step does something whose outcome the client knows, and waits until the books say the same, number by number. A
thread scrapes all the while: at no scrape may the books be off from what is in flight.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.e2e.clients import make_request
from tests.e2e.server import Server, wait_until
from tests.exported import exported
from tests.faults.retrying import channel

_QUEUE_MAX = 4
_HALF, _SLOW = "/v1/models/half:predict", "/v1/models/slow:predict"

#: (protocol, code) -> count
Ends = Counter[tuple[str, str]]


class Books:
    """What `/metrics` says of one server, all processes together."""

    def __init__(self, server: Server) -> None:
        line = re.compile(r"metrics at 127\.0\.0\.1:(\d+)")
        port = wait_until(lambda: line.search(server.log), "the metrics port").group(1)
        self._url = f"http://127.0.0.1:{port}/metrics"
        self.scrapes = 0
        self.faults: list[str] = []
        #: Calls that are in flight on purpose.
        self.busy = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._expected: Ends = Counter()
        self._known: Ends = Counter()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        with urllib.request.urlopen(self._url, timeout=60) as response:
            page = response.read().decode()
        for family in text_string_to_metric_families(page):
            yield from ((sample.name, sample.labels, sample.value) for sample in family.samples)

    def in_flight(self) -> int:
        return sum(
            int(value)
            for name, labels, value in self.samples()
            if name == "ringserve_calls_in_flight" and labels["protocol"] in ("grpc", "rest")
        )

    def ends(self) -> Ends:
        found: Ends = Counter()
        for name, labels, value in self.samples():
            if name == "ringserve_calls_ended_total" and labels["protocol"] in ("grpc", "rest"):
                found[labels["protocol"], labels["code"]] += int(value)
        return found

    def answered(self) -> Counter[str]:
        """By entry point, as the APIs count."""
        found: Counter[str] = Counter()
        for name, labels, value in self.samples():
            if name == "ringserve_requests_total":
                found[labels["entrypoint"].lower()] += int(value)
        return found

    def wait_for(self, **new: int) -> None:
        """Until exactly this many more have ended, each named PROTOCOL_CODE, and nothing else is in flight."""
        for name, count in new.items():
            protocol, _, code = name.partition("_")
            self._expected[protocol, code] += count

        def settled() -> bool:
            return self.in_flight() == self.busy and self.ends() - self._known == self._expected

        wait_until(settled, f"{self._expected}; now {self.ends() - self._known}, {self.in_flight()} in flight")

    def __enter__(self) -> Books:
        wait_until(lambda: self.in_flight() == 0, "what started the server to be over")
        self._known = self.ends()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                samples = list(self.samples())
            except (OSError, http.client.HTTPException):
                continue  # that frontend was just killed
            self.scrapes += 1
            self.faults += [
                f"{name}{labels} {value}"
                for name, labels, value in samples
                if (name == "ringserve_calls_unbalanced" and value)
                or (name == "ringserve_calls_in_flight" and value < 0)
            ]


class Caller:
    """Calls whose outcome is known by its gRPC code or HTTP status."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.channel = channel(server.grpc_target, retries=False)
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict
        self.turns = 1_000
        # The quickest of some: one that the machine made wait a fifth of a second says nothing about its turns, and the
        # calls below would be over before anyone saw them in flight.
        while (took_s := min(self._time() for _ in range(5))) < 0.2:
            self.turns = min(int(self.turns * 0.3 / took_s), 10 * self.turns)

    def _time(self) -> float:
        begun_s = time.monotonic()
        assert self.slow().code() is grpc.StatusCode.OK
        return time.monotonic() - begun_s

    def predict(self, request: Any, timeout: float = 60) -> str:
        call = self._predict.future(request, timeout=timeout)
        call.exception()
        return str(call.code().name)

    def slow(self, turns: int = 0, timeout: float = 60, wait: bool = True) -> Any:
        """Some tenths of a second in a worker."""
        turns = turns or self.turns
        request = make_request("slow", x=np.array([1], np.float32), turns=np.array([turns], np.int32))
        call = self._predict.future(request, timeout=timeout)
        if wait:
            call.exception()
        return call

    def half(self) -> str:
        return self.predict(make_request("half", x=np.array([1, 2], np.float32)))

    def slow_body(self, times: int = 6) -> bytes:
        return json.dumps({"instances": [{"x": 1, "turns": times * self.turns}]}).encode()

    def post(self, path: str, body: bytes, **headers: str) -> int:
        return self._server.post(path, body, {name.replace("_", "-"): value for name, value in headers.items()})[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = exported(tmp_path_factory, "half", "slow")
    config = tmp_path_factory.mktemp("config") / "models.config"
    entry = "config {{ name: '{name}' base_path: '{path}' model_platform: 'tensorflow' }}"
    entries = " ".join(entry.format(name=name, path=models / name) for name in ("half", "slow"))
    config.write_text(f"model_config_list {{ {entries} }}")
    arguments = ["--model_config_file", str(config), "--workers", "2", "--frontends", "1", "--metrics_port", "-1"]
    arguments += ["--host", "127.0.0.1", "--queue_requests_max", str(_QUEUE_MAX), "--batching_policy", "none"]
    arguments += ["--lease_ms_max", "600000"]  # what runs for seconds here runs for a minute on a busy machine: no hang
    with Server(tmp_path_factory.mktemp("server"), *arguments) as server:
        server.wait_available("half")
        server.wait_available("slow")
        yield server


def test_all_that_comes_in_ends_once_and_nothing_stays(server: Server) -> None:
    caller = Caller(server)
    with Books(server) as books:
        _good_and_bad(caller, books)
        blockers = [caller.slow(20 * caller.turns, timeout=150, wait=False) for _ in range(2)]  # what comes now waits
        books.busy = len(blockers)
        _cancelled(server, caller, books)
        _expired(caller, books)
        books.busy = 0
        books.wait_for(grpc_OK=len(blockers))
        _too_many(caller, books)
        _killed_workers_and_broker(server, caller, books)
        answered, ends = books.answered(), books.ends()
        for protocol in ("grpc", "rest"):
            refused = ends[protocol, "REFUSED"]
            assert answered[protocol] == sum(n for (of, _), n in ends.items() if of == protocol) - refused
        _killed_frontend(server, caller, books)
    assert books.scrapes > 20
    assert not books.faults
    caller.channel.close()


def _good_and_bad(caller: Caller, books: Books) -> None:
    for _ in range(20):
        assert caller.half() == "OK"
        assert caller.post(_HALF, b'{"instances": [1, 2]}') == 200
    books.wait_for(grpc_OK=20, rest_200=20)
    assert caller.predict(make_request("nobody", x=np.array([1], np.float32))) == "NOT_FOUND"
    assert caller.predict(make_request("half", x=np.array(["text"], object))) == "INVALID_ARGUMENT"
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        caller.channel.unary_unary("/no.such/Method", None, None)(b"", timeout=60)
    assert caller.post(_HALF, b"{") == 400
    assert caller.post("/v1/models/nobody:predict", b'{"instances": [1]}') == 404
    books.wait_for(grpc_NOT_FOUND=1, grpc_INVALID_ARGUMENT=1, grpc_REFUSED=1, rest_400=1, rest_404=1)


def _cancelled(server: Server, caller: Caller, books: Books) -> None:
    own = channel(server.grpc_target, retries=False)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(own)
    request = make_request("slow", x=np.array([1], np.float32), turns=np.array([6 * caller.turns], np.int32))
    reset, cut = stub.Predict.future(request), stub.Predict.future(request)
    host, _, port = server.rest_url.removeprefix("http://").partition(":")
    rest = http.client.HTTPConnection(host, int(port))
    rest.request("POST", _SLOW, caller.slow_body())
    wait_until(lambda: books.in_flight() == 3 + books.busy, "three calls to be in flight")
    reset.cancel()
    wait_until(lambda: books.in_flight() == 2 + books.busy, "one call to be over")
    own.close()
    rest.close()
    books.wait_for(grpc_CANCELLED=2, rest_CANCELLED=1)
    assert cut.code() is grpc.StatusCode.CANCELLED


def _expired(caller: Caller, books: Books) -> None:
    before = books.ends()
    for _ in range(3):
        # One after another: who finds others waiting may be refused at once, where it is known how slowly they go.
        wait_until(lambda: books.in_flight() == books.busy, "the queue to be empty")
        call = caller.slow(6 * caller.turns, timeout=0.3, wait=False)
        assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Both sides look at the clock: the client may have given up a moment before the server answers.
    wait_until(lambda: (books.ends() - before).total() == 3, "three calls to be over")
    new = books.ends() - before
    assert set(new) <= {("grpc", "DEADLINE_EXCEEDED"), ("grpc", "CANCELLED")}
    books.wait_for(**{"_".join(end): count for end, count in new.items()})
    assert caller.post(_SLOW, caller.slow_body(), X_Request_Timeout="0.2") == 504
    books.wait_for(rest_504=1)


def _too_many(caller: Caller, books: Books) -> None:
    """More than two workers and the queue take; REST among them."""
    with ThreadPoolExecutor(8) as threads:
        posts = [threads.submit(caller.post, _SLOW, caller.slow_body(1)) for _ in range(8)]
        calls = [caller.slow(wait=False) for _ in range(16)]
        codes = Counter(f"grpc_{(call.exception(), call.code())[1].name}" for call in calls)
        codes.update(f"rest_{post.result()}" for post in posts)
    assert len(codes) > 2, codes
    assert codes.total() == 24
    books.wait_for(**codes)


def _killed_workers_and_broker(server: Server, caller: Caller, books: Books) -> None:
    for role in ("worker", "broker", "worker"):
        calls = [caller.slow(wait=False) for _ in range(3)]
        wait_until(lambda: books.in_flight() == 3, "three calls to be in flight")
        victim = wait_until(lambda role=role: server.members(role), f"a {role}")[0]  # type: ignore[misc]
        victim.kill()
        codes = {(call.exception(), call.code())[1].name for call in calls}
        assert codes == {"OK"}
        books.wait_for(grpc_OK=3)


def _killed_frontend(server: Server, caller: Caller, books: Books) -> None:
    """What was in flight when the books were put down for the last time is lost, and said to be."""
    wait_until(lambda: len(server.members("worker")) == 2, "both workers to be back")
    calls = [caller.slow(6 * caller.turns, wait=False) for _ in range(3)]
    wait_until(lambda: books.in_flight() == 3, "three calls to be in flight")
    server.members("frontend")[0].kill()
    assert all(call.exception().code() is grpc.StatusCode.UNAVAILABLE for call in calls)
    wait_until(lambda: _answers(books), "a frontend to be back")
    books.wait_for(grpc_LOST=3)


def _answers(books: Books) -> bool:
    try:
        return bool(books.ends())
    except (OSError, http.client.HTTPException):
        return False
