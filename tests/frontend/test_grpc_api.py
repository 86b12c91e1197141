"""The gRPC methods over a client that answers at once: what a TensorFlow Serving client sees, in its very words."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.broker.messages import Code
from ringserve.config.protos import (
    ModelSpec,
    PredictRequest,
    PredictResponse,
    TensorProto,
)
from ringserve.frontend.grpc_api import PREDICT, GrpcSettings, make_methods
from ringserve.shm.dtype import FLOAT, STRING
from tests.frontend.fakes import (
    FakeCall,
    LoopbackClient,
    assert_leaves_no_cycle,
    float_proto,
    half_plus_two,
    make_output,
    signature_def,
    usual_catalog,
    version_info,
)


@pytest.fixture
def client() -> LoopbackClient:
    return LoopbackClient(usual_catalog(), half_plus_two)


def call(client: LoopbackClient, method: str, request: Any, **settings: Any) -> FakeCall:
    made = FakeCall()
    message = request if isinstance(request, bytes) else request.SerializeToString()
    make_methods(client, GrpcSettings(**settings)).unary[method](made, message)
    return made


def predict_request(x: Any = None, output_filter: tuple[str, ...] = (), **spec: Any) -> Any:
    request = PredictRequest(model_spec=ModelSpec(name="default", **spec), output_filter=output_filter)
    request.inputs["x"].CopyFrom(float_proto([1, 2, 5], [3]) if x is None else x)
    return request


def predicted(client: LoopbackClient, request: Any, **settings: Any) -> Any:
    made = call(client, PREDICT, request, **settings)
    assert made.failure is None
    assert made.message is not None
    return PredictResponse.FromString(made.message)


# -------------------------------------------------------------------------------------------------------------- Predict


def test_predict(client: LoopbackClient) -> None:
    response = predicted(client, predict_request())
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [3]
    assert response.outputs["y"].dtype == FLOAT
    # the request set neither: acceptance fact 12
    assert response.model_spec.name == "default"
    assert response.model_spec.version.value == 123
    assert response.model_spec.signature_name == "serving_default"
    assert client.requests[0][1] == 3


def test_a_label_is_never_echoed(client: LoopbackClient) -> None:
    response = predicted(client, predict_request(version_label="stable"))
    assert response.model_spec.WhichOneof("version_choice") == "version"
    assert response.model_spec.version.value == 123


def test_tensor_content_answers(client: LoopbackClient) -> None:
    response = predicted(client, predict_request(), tensor_content=True)
    assert response.outputs["y"].tensor_content == struct.pack("<3f", 2.5, 3.0, 4.5)
    assert not response.outputs["y"].float_val


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (float_proto([1, 2], [4]), [2.5, 3, 3, 3]),  # acceptance fact 11
        (float_proto([], [2]), [2, 2]),
        (float_proto([3, 4], [2], content=True), [3.5, 4]),
        (float_proto([2, 3, 4], [3, 1]), [3, 3.5, 4]),  # another rank than declared is the model's business
        (float_proto([2], []), [3]),
        (float_proto([], [0]), []),
    ],
)
def test_predict_of_shapes_and_fillings(client: LoopbackClient, x: Any, expected: list[float]) -> None:
    response = predicted(client, predict_request(x))
    assert list(response.outputs["y"].float_val) == expected
    assert response.outputs["y"].tensor_shape == x.tensor_shape


@pytest.mark.parametrize("repeats", [1, 4])  # the fourth comes by the template
def test_repeated_requests_are_answered_each_with_its_own(client: LoopbackClient, repeats: int) -> None:
    handler = make_methods(client).unary[PREDICT]
    for index in range(repeats):
        made = FakeCall()
        handler(made, memoryview(predict_request(float_proto([index], [1])).SerializeToString()))
        assert made.message is not None
        assert list(PredictResponse.FromString(made.message).outputs["y"].float_val) == [index * 0.5 + 2]


def test_long_error_texts_are_cut(client: LoopbackClient) -> None:
    client.model = lambda lane, rows, payloads: (Code.INVALID_ARGUMENT, "e" * 5000)
    failure = call(client, PREDICT, predict_request()).failure
    assert failure == (Code.INVALID_ARGUMENT, "e" * 1024 + "...TRUNCATED")  # acceptance fact 14
    failure = call(client, PREDICT, predict_request(signature_name="s" * 5000)).failure
    assert failure is not None
    assert failure[1] == ('Serving signature key "' + "s" * 5000)[:1024] + "...TRUNCATED"


def test_strings_in_and_out(client: LoopbackClient) -> None:
    signature = signature_def({"x": (STRING, [-1])}, {"y": (STRING, [-1])})
    client.catalog.update([version_info(signatures={"serving_default": signature})])
    client.model = lambda lane, rows, payloads: [
        make_output(STRING, (rows,), [value.upper() for value in payloads[0]], batchable=True)
    ]
    x = TensorProto(dtype=STRING, string_val=[b"ab", b"\xff", b""])
    x.tensor_shape.dim.add(size=3)
    assert list(predicted(client, predict_request(x)).outputs["y"].string_val) == [b"AB", b"\xff", b""]


def test_rows_of_a_shared_record(client: LoopbackClient) -> None:
    """The record holds other requests' rows before and after this one's."""
    client.model = None
    made = call(client, PREDICT, predict_request(float_proto([0, 0], [2])))
    lane, rows, _, _, reply = client.requests[0]
    assert (lane.spec.batchable, rows) == (True, 2)
    reply.answer([make_output(FLOAT, (6,), np.arange(6, dtype="<f4"), batchable=True)], 3, 2)
    assert made.message is not None
    assert list(PredictResponse.FromString(made.message).outputs["y"].float_val) == [3, 4]


# -------------------------------------------------------------------------------------------------- cancel and deadline


def test_the_deadline_is_handed_on(client: LoopbackClient) -> None:
    client.model = None
    make_methods(client).unary[PREDICT](FakeCall(timeout_ns=5_000_000), predict_request().SerializeToString())
    assert client.requests[0][3] == 5_000_000


def test_calls_without_a_deadline_have_the_servers(client: LoopbackClient) -> None:
    client.model = None
    predict = make_methods(client, GrpcSettings(timeout_ms=7)).unary[PREDICT]
    for timeout_ns in (0, 5_000_000, 9_000_000, -1):
        predict(FakeCall(timeout_ns=timeout_ns), predict_request().SerializeToString())
    assert [request[3] for request in client.requests] == [7_000_000, 5_000_000, 9_000_000, -1]


def test_cancel(client: LoopbackClient) -> None:
    client.model = None
    made = call(client, PREDICT, predict_request())
    assert made.cancel is not None
    made.cancel()
    assert client.cancelled == [1]
    # whatever still comes finds nobody
    client.requests[0][4].fail(Code.CANCELLED, "late")
    assert made.failure is None


def test_cancel_after_the_answer_does_nothing(client: LoopbackClient) -> None:
    client.model = None
    made = call(client, PREDICT, predict_request())
    client.requests[0][4].fail(Code.UNAVAILABLE, "no worker")
    assert made.failure == (Code.UNAVAILABLE, "no worker")
    assert made.cancel is not None
    made.cancel()
    assert client.cancelled == []


def test_a_finished_call_leaves_no_cycle(client: LoopbackClient) -> None:
    """The frontends run without the cyclic collector: what a call leaves behind must die by itself."""
    client.model = None
    assert_leaves_no_cycle(client, lambda: call(client, PREDICT, predict_request()))


# -------------------------------------------------------------------------------------------- signatures of real models

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "tfs"


def signatures_of(path: Path) -> Any:
    """The SignatureDefMap of a SavedModel on disk, read without TensorFlow's run time."""
    tensorflow: Any = pytest.importorskip("tensorflow.core.protobuf.saved_model_pb2")
    saved = tensorflow.SavedModel.FromString(path.read_bytes())
    return dict(saved.meta_graphs[0].signature_def)


@pytest.mark.skipif(not MODELS.is_dir(), reason="the test models of TensorFlow Serving are not here")
@pytest.mark.parametrize(
    "name",
    [
        "saved_model_half_plus_two_cpu",
        "saved_model_half_plus_two_tf2_cpu",
        "saved_model_half_plus_two_mlmd",
        "saved_model_half_plus_three",
    ],
)
@pytest.mark.parametrize("x", [float_proto([2, 3, 4], [3]), float_proto([2], [1])], ids=["3", "1"])
def test_requests_of_tensorflow_servings_own_suite_reach_the_model(client: LoopbackClient, name: str, x: Any) -> None:
    found = sorted(MODELS.glob(f"{name}/*/saved_model.pb"))
    client.catalog.update([version_info(signatures=signatures_of(found[0]))])
    response = predicted(client, predict_request(x))
    assert list(response.outputs["y"].float_val) == [value * 0.5 + 2 for value in x.float_val]
