"""What is not done on the event loop, and requests whose client goes away."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from ringserve.frontend import rest_predict
from ringserve.frontend.rest_api import RestSettings, make_app
from tests.frontend.http1.peer import Peer, read_answers
from tests.frontend.rest.served import (
    PREDICT,
    CountingTally,
    FakeExchange,
    RestLoopback,
    default_model,
    head_of,
    post,
)


def array(rows: int, columns: int, change: str = "0.5") -> str:
    """A regular array but for its last number."""
    values = np.random.default_rng(4).random((rows, columns)).round(3)
    texts = [list(map(repr, row)) for row in values.tolist()]
    texts[-1][-1] = change
    return "[" + ",".join("[" + ",".join(row) + "]" for row in texts) + "]"


@pytest.mark.parametrize(
    ("rows", "change", "status"),
    [
        (20, "-0.5", 200), (20, "NaN", 200), (20, "[1]", 400), (20, "true", 400), (20, "]", 400),
        (400, "-0.5", 200), (400, "NaN", 200), (400, "[1]", 400), (400, "true", 400), (400, "]", 400),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ['{"inputs":%s}', '{"inputs":{"x":%s}}', '{"instances":%s}'])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_requests_are_read_alike(rows: int, change: str, status: int, form: str, kind: type) -> None:
    body = kind((form % array(rows, 150, change)).encode())
    assert (len(body) > rest_predict._SIDE_BYTES_MIN) == (rows == 400)
    response = post(body, "echo_float")
    assert response.status == status, response.body[:200]
    if status == 200:
        read = np.array(response.json["outputs" if "inputs" in form else "predictions"], np.float32)
        written = np.array(json.loads(array(rows, 150, change)), np.float32)
        assert np.array_equal(read, written, equal_nan=True)


def test_a_large_request_with_a_mistake_says_where_it_is() -> None:
    response = post(f'{{"instances":{array(400, 150, "null")}}}', "echo_float")
    assert response.error.startswith("Failed to process element: 399 of 'instances' list. Error: INVALID_ARGUMENT: ")
    rows = [["1"] * 100 for _ in range(200)]  # too small for the other thread, too slow for this one
    rows[199][99] = "null"
    response = post('{"instances":[' + ",".join("[" + ",".join(row) + "]" for row in rows) + "]}", "echo_float")
    assert response.error.startswith("Failed to process element: 199 of 'instances' list. Error: INVALID_ARGUMENT: ")
    rows[199][99] = "Infinity"
    response = post('{"instances":[' + ",".join("[" + ",".join(row) + "]" for row in rows) + "]}", "echo_float")
    assert response.status == 200


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (f'{{"instances":{array(400, 500)}}}', {}),
        (f'{{"instances":{array(400, 500)},"x":[null]}}trailing', {}),
        ('{"x":NaN,"instances":[1,' + "2," * 20_000 + "1]}", {}),
        ('{"instances":[1]}', {"Content-Encoding": "gzip"}),
        ('{"instances":[[1]' + ',["a"]' * 20_000 + "]}", {}),
    ],
    ids=["large", "trailing", "exact", "gzip", "a mistake"],
)
def test_a_client_that_leaves_while_its_body_is_read(body: str, headers: dict[str, str]) -> None:
    async def run() -> None:
        client, tally = RestLoopback(model=default_model), CountingTally()
        app = make_app(client, tally=tally)
        data = gzip.compress(body.encode()) if headers else body.encode()
        exchange = FakeExchange(head_of("POST", "/v1/models/echo_float:predict", headers), data)
        app.handle(exchange)
        assert exchange.response is None
        assert exchange.cancel is not None
        exchange.cancel()
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
        assert exchange.response is None
        assert not client.requests, "what nobody waits for is not run"
        assert tally.requests == [("REST", "predict", "echo_float", int(Code.CANCELLED))]

    asyncio.run(run())


Test = Callable[[RestLoopback, FakeExchange, CountingTally], Awaitable[None]]


def waiting(test: Test, verb: str = "predict") -> None:
    """Run `test` while a request waits for its outputs."""

    async def run() -> None:
        client, tally = RestLoopback(), CountingTally()
        app = make_app(client, tally=tally)
        body = b'{"instances":[1],"examples":[{}],"signature_name":"regress"}'
        target, body = (PREDICT, b'{"instances":[1]}') if verb == "predict" else ("/v1/models/examples:regress", body)
        exchange = FakeExchange(head_of("POST", target), body)
        app.handle(exchange)
        assert len(client.requests) == 1
        assert exchange.cancel is not None
        await test(client, exchange, tally)

    asyncio.run(run())


@pytest.mark.parametrize("verb", ["predict", "regress"])
def test_a_client_that_leaves_while_waiting_cancels_its_request(verb: str) -> None:
    async def test(client: RestLoopback, exchange: FakeExchange, tally: CountingTally) -> None:
        assert exchange.cancel is not None
        exchange.cancel()
        assert client.cancelled == [1]
        reply = client.requests[0][4]
        reply.fail(Code.CANCELLED, "late")  # whoever answers late does no harm
        reply.answer([], 0, 1)
        assert exchange.response is None
        assert [code for _, _, _, code in tally.requests] == [int(Code.CANCELLED)]
        assert not tally.runs

    waiting(test, verb)


def test_a_client_that_leaves_while_its_answer_is_written() -> None:
    async def test(client: RestLoopback, exchange: FakeExchange, tally: CountingTally) -> None:
        lane, _, _, _, reply = client.requests[0]
        from tests.frontend.fakes import make_output

        values = np.zeros(100_000, np.float32)
        assert lane.spec.batchable
        reply.answer([make_output(1, values.shape, values, batchable=True)], 0, 100_000)
        assert exchange.response is None, "a large answer is written aside"
        assert exchange.cancel is not None
        exchange.cancel()
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
        assert exchange.response is None
        assert [code for _, _, _, code in tally.requests] == [int(Code.CANCELLED)]

    waiting(test)


@pytest.mark.parametrize("is_own", [True, False])
def test_time_that_is_over_while_a_body_is_read(monkeypatch: pytest.MonkeyPatch, is_own: bool) -> None:
    """It is answered then, and not when the thread has done with it; nothing is run."""
    is_reading, may_go_on = threading.Event(), threading.Event()

    def slowly(*_: Any) -> bytes:
        is_reading.set()
        may_go_on.wait(60)
        return b'{"instances":[1]}'

    monkeypatch.setattr(rest_predict, "gunzip", slowly)

    async def run() -> None:
        client, tally = RestLoopback(), CountingTally()
        headers = {"Content-Encoding": "gzip"} | ({"X-Request-Timeout": "20ms"} if is_own else {})
        exchange = FakeExchange(head_of("POST", PREDICT, headers), bytes(5_000))
        make_app(client, RestSettings(timeout_ms=20), tally=tally).handle(exchange)
        try:
            async with asyncio.timeout(60):
                await exchange.answered.wait()
        finally:
            may_go_on.set()
        assert is_reading.is_set()
        assert exchange.response is not None
        text = "Timed out waiting for notification: the request's body was being read"
        assert (exchange.response.status, exchange.response.error) == (504, text)
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
        assert not client.requests
        assert [code for _, _, _, code in tally.requests] == [int(Code.DEADLINE_EXCEEDED)]

    asyncio.run(run())


@pytest.mark.parametrize("sent", ["", "abc"])
def test_a_bug_aside_is_answered_and_found_by_its_id(
    sent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(rest_predict, "gunzip", broken)

    async def run() -> None:
        headers = {"Content-Encoding": "gzip"} | ({"X-Request-Id": sent} if sent else {})
        exchange = FakeExchange(head_of("POST", PREDICT, headers), b"x")
        make_app(RestLoopback(model=default_model)).handle(exchange)
        await exchange.answered.wait()
        assert exchange.response is not None
        assert exchange.response.status == 500
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        told = exchange.response.headers["x-request-id"]
        assert told == sent or (not sent and len(told) == 24)
        assert getattr(record, "request_id", "") == told

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())


def test_the_loop_goes_on_while_a_large_body_is_read() -> None:
    """Turns of the loop between the request and its answer: with all work on the loop there would be a handful."""

    async def run() -> int:
        app = make_app(RestLoopback(model=default_model))
        exchange = FakeExchange(
            head_of("POST", "/v1/models/echo_float:predict"), f'{{"instances":{array(2000, 500)}}}'.encode()
        )
        app.handle(exchange)
        turns = 0
        while not exchange.answered.is_set():
            await asyncio.sleep(0)
            turns += 1
        assert exchange.response is not None
        assert exchange.response.status == 200
        return turns

    assert asyncio.run(run()) > 50


@pytest.mark.parametrize("body", [b'{"instances":[1]}', b"{}", b'{"instances":[' + b"1.5," * 200 + b"2]}"])
def test_a_request_leaves_nothing_for_the_collector(body: bytes) -> None:
    """A frontend under load would stop for it: what answers a request must not refer to itself."""

    async def run() -> None:
        peer = Peer(make_app(RestLoopback(model=default_model)).handle)
        request = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (PREDICT.encode(), len(body)) + body
        peer.push(request * 3)
        gc.collect()
        gc.disable()
        try:
            for _ in range(30):
                peer.push(request)
            assert gc.collect() == 0
        finally:
            gc.enable()
        assert len(read_answers(peer.take())) == 33

    asyncio.run(run())
