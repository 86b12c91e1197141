"""Warm-up records from live requests: what is kept of them, when it ends, and that it costs nothing otherwise."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from ringserve.config.protos import Example, PredictionLog
from ringserve.config.tfrecord import read_records
from ringserve.frontend import recorder
from ringserve.frontend.lanes import Lane
from ringserve.frontend.recorder import Recorder
from ringserve.frontend.rest_api import RestApp, make_app
from tests.frontend.rest.served import FakeExchange, Response, RestLoopback, default_model, head_of, request

RECORD = "/ringserve/v1/models/{}:record"
JSON = {"Content-Type": "application/json"}


async def begin(app: RestApp, model: str, **wanted: Any) -> FakeExchange:
    """A recording that has begun."""
    exchange = FakeExchange(head_of("POST", RECORD.format(model), JSON), json.dumps(wanted).encode())
    app.handle(exchange)
    while exchange.cancel is None and exchange.response is None:
        await asyncio.sleep(0)
    return exchange


async def outcome(exchange: FakeExchange) -> Response:
    async with asyncio.timeout(30):
        await exchange.answered.wait()
    assert exchange.response is not None
    return exchange.response


def logs_of(response: Response) -> list[Any]:
    assert response.status == 200
    assert response.headers["content-type"] == "application/octet-stream"
    return [PredictionLog.FromString(record) for record in read_records(response.body)]


def run(test: Any) -> None:
    async def main() -> None:
        client = RestLoopback(model=default_model)
        await test(make_app(client), client)

    asyncio.run(main())


def predict(model: str) -> str:
    return f"/v1/models/{model}:predict"


def test_predicts_are_kept_as_they_run() -> None:
    async def test(app: RestApp, client: RestLoopback) -> None:
        exchange = await begin(app, "two", count=2)
        await request(app, "POST", predict("two"), b'{"instances":[{"a":[1,2],"b":7},{"a":[3,4],"b":8}]}')
        await request(app, "POST", predict("default"), b'{"instances":[1]}')
        await request(app, "POST", predict("two"), b'{"instances":[{"a":[1]}]}')  # refused: nothing to warm up with
        await request(app, "POST", predict("two"), b'{"inputs":{"a":[],"b":[1]}}')
        await request(app, "POST", predict("two"), b'{"instances":[{"a":[9],"b":9}]}')
        first, second = logs_of(await outcome(exchange))
        sent = first.predict_log.request
        assert (sent.model_spec.name, sent.model_spec.signature_name) == ("two", "serving_default")
        assert list(sent.output_filter) == ["a", "b"]
        assert sent.inputs["a"].tensor_content == np.array([[1, 2], [3, 4]], np.float32).tobytes()
        assert [dim.size for dim in sent.inputs["a"].tensor_shape.dim] == [2, 2]
        assert [dim.size for dim in sent.inputs["b"].tensor_shape.dim] == [2]
        assert [dim.size for dim in second.predict_log.request.inputs["a"].tensor_shape.dim] == [0]
        assert client.recorder is None, "off again"

    run(test)


def test_strings_scalars_and_examples() -> None:
    async def test(app: RestApp, client: RestLoopback) -> None:
        strings = await begin(app, "bytes", count=1)
        examples = await begin(app, "examples", count=2)
        scalar = await begin(app, "echo_float", count=1)
        await request(app, "POST", predict("bytes"), b'{"inputs":{"k":["a"],"k_bytes":[{"b64":"AP8="}]}}')
        await request(app, "POST", predict("echo_float"), b'{"inputs":3}')
        body = b'{"signature_name":"%s","context":{"c":1},"examples":[{"f":[1.5]},{}]}'
        await request(app, "POST", "/v1/models/examples:classify", body % b"classify")
        await request(app, "POST", "/v1/models/examples:regress", body % b"regress")
        (log,) = logs_of(await outcome(strings))
        assert list(log.predict_log.request.inputs["k_bytes"].string_val) == [b"\x00\xff"]
        (log,) = logs_of(await outcome(scalar))
        assert not log.predict_log.request.inputs["x"].tensor_shape.dim
        classify, regress = logs_of(await outcome(examples))
        assert classify.classify_log.request.model_spec.signature_name == "classify"
        found = list(regress.regress_log.request.input.example_list.examples)
        expected = Example()
        expected.features.feature["c"].int64_list.value.append(1)
        assert found[1] == expected
        expected.features.feature["f"].float_list.value.append(1.5)
        assert found[0] == expected

    run(test)


def test_the_time_ends_it() -> None:
    async def test(app: RestApp, client: RestLoopback) -> None:
        some = await begin(app, "default", count=100, seconds=0.3)
        none = await begin(app, "two", seconds=0.01)
        await request(app, "POST", predict("default"), b'{"instances":[1]}')
        assert len(logs_of(await outcome(some))) == 1
        response = await outcome(none)
        assert (response.status, response.error) == (504, "no request of model two came within 0.01 s")
        assert client.recorder is None

    run(test)


def test_a_client_that_leaves_ends_it() -> None:
    async def test(app: RestApp, client: RestLoopback) -> None:
        exchange = await begin(app, "default", seconds=3600)
        assert exchange.cancel is not None
        exchange.cancel()
        while client.recorder is not None:
            await asyncio.sleep(0)

    run(test)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "RECORDING_BYTES_MAX", 300)

    async def test(app: RestApp, client: RestLoopback) -> None:
        unknown = await begin(app, "nope")
        assert (await outcome(unknown)).status == 404
        held = [await begin(app, "default", count=1000) for _ in range(recorder.RECORDINGS_MAX)]
        refused = await begin(app, "default")
        assert (await outcome(refused)).status == 429
        for _ in range(10):
            await request(app, "POST", predict("default"), b'{"instances":[1,2,3,4,5,6,7,8]}')
        for each in held:
            assert 1 <= len(logs_of(await outcome(each))) < 10

    run(test)


def test_open_axes_are_kept_as_the_request_had_them() -> None:
    """A lane that pads leaves inner axes open; a record says what came."""
    from ringserve.broker.messages import InputSpec, LaneSpec

    open_spec = LaneSpec("m", 1, "s", (InputSpec("x", 1, (-1,)),), ("y",), True)
    own = open_spec._replace(inputs=(InputSpec("x", 1, (3,)),))
    kept = Recorder()
    recording = kept.begin("m", 1)
    assert recording is not None
    kept.see(Lane(open_spec, own), 2, [np.arange(6, dtype=np.float32).tobytes()], "Predict")
    kept.see(Lane(open_spec, own), 2, [b""], "MultiInference")
    (record,) = read_records(recording.file())
    tensor = PredictionLog.FromString(record).predict_log.request.inputs["x"]
    assert [dim.size for dim in tensor.tensor_shape.dim] == [2, 3]
    assert recording.done.is_set()
    assert kept.end(recording)
