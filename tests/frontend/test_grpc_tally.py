"""What the gRPC methods tell the tally: each Predict, Classify and Regress once, however it ends (section 8.3)."""

from __future__ import annotations

from typing import Any

import pytest

from ringserve.broker.messages import Code
from ringserve.config.protos import ModelSpec, PredictRequest
from ringserve.frontend.grpc_api import CLASSIFY, GET_MODEL_STATUS, MULTI_INFERENCE, PREDICT, REGRESS, make_methods
from ringserve.frontend.tally import Tally
from tests.frontend.fakes import FakeCall, LoopbackClient, float_proto, half_plus_two, version_info
from tests.frontend.grpc_kit import BOTH, SIGNATURES, TWO, classification, make_client, multi, regression


class Notes(Tally):
    """A tally that writes down what it is told, with a clock that stands still unless it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1_000
        self.clock_ns = lambda: self.now_ns
        self.notes: list[tuple[Any, ...]] = []

    def request(
        self, entrypoint: str, api: str, model: str, code: int, started_ns: int, lane: Any = None
    ) -> None:
        self.notes.append(("request", entrypoint, api, model, int(code), started_ns, lane is not None))

    def run(self, api: str, model: str, started_ns: int) -> None:
        self.notes.append(("run", api, model, started_ns))

    def examples(self, model: str, count: int) -> None:
        self.notes.append(("examples", model, count))


@pytest.fixture
def tally() -> Notes:
    return Notes()


def predict_of(model: str, signature: str = "") -> Any:
    request = PredictRequest(model_spec=ModelSpec(name=model, signature_name=signature))
    request.inputs["x"].CopyFrom(float_proto([1], [1]))
    return request


@pytest.fixture
def client() -> LoopbackClient:
    client = make_client()
    client.catalog.update([version_info("m", 7, SIGNATURES), version_info("h", 1)])
    return client


def call(client: LoopbackClient, tally: Tally, method: str, message: bytes) -> FakeCall:
    made = FakeCall()
    make_methods(client, tally=tally).unary[method](made, message)
    return made


@pytest.mark.parametrize(
    ("method", "request_message", "api", "model"),
    [
        (PREDICT, predict_of("h"), "Predict", "h"),
        (CLASSIFY, classification(*TWO), "Classify", "m"),
        (REGRESS, regression(*TWO), "Regress", "m"),
    ],
)
def test_8_3_a_request_that_is_answered(
    client: LoopbackClient, tally: Notes, method: str, request_message: Any, api: str, model: str
) -> None:
    answer = half_plus_two if method == PREDICT else client.model
    client.model = None
    made = call(client, tally, method, request_message.SerializeToString())
    assert not tally.notes
    lane, rows, payloads, _, reply = client.requests[0]
    tally.now_ns = 5_000
    assert answer is not None
    outputs = answer(lane, rows, payloads)
    assert isinstance(outputs, list)
    reply.answer(outputs, 0, rows)
    assert made.message is not None
    assert tally.notes == [("run", api, model, 1_000), ("request", "GRPC", api, model, Code.OK, 1_000, True)]


@pytest.mark.parametrize(
    ("method", "request_message", "api"),
    [
        (PREDICT, predict_of("h"), "Predict"),
        (CLASSIFY, classification(*TWO), "Classify"),
        (REGRESS, regression(*TWO), "Regress"),
    ],
)
@pytest.mark.parametrize("how", ["fails", "cancelled"])
def test_8_3_a_request_that_is_not(
    client: LoopbackClient, tally: Notes, method: str, request_message: Any, api: str, how: str
) -> None:
    client.model = None
    made = call(client, tally, method, request_message.SerializeToString())
    reply = client.requests[0][4]
    if how == "fails":
        reply.fail(Code.UNAVAILABLE, "no worker")
    else:
        assert made.cancel is not None
        made.cancel()
        reply.fail(Code.UNAVAILABLE, "and nobody hears it")
    code = Code.UNAVAILABLE if how == "fails" else Code.CANCELLED
    model = "h" if method == PREDICT else "m"
    assert tally.notes == [("request", "GRPC", api, model, code, 1_000, True)]


def test_8_3_outputs_that_are_refused_have_run(client: LoopbackClient, tally: Notes) -> None:
    message = classification(*TWO[:1], signature_name="scores").SerializeToString()  # HALVES are two rows
    call(client, tally, CLASSIFY, message)
    assert tally.notes == [
        ("run", "Classify", "m", 1_000),
        ("request", "GRPC", "Classify", "m", Code.INVALID_ARGUMENT, 1_000, True),
    ]


@pytest.mark.parametrize(
    ("method", "message", "api", "model", "code"),
    [
        (PREDICT, predict_of("nope").SerializeToString(), "Predict", "nope", Code.NOT_FOUND),
        (PREDICT, predict_of("h", "s").SerializeToString(), "Predict", "h", Code.FAILED_PRECONDITION),
        (PREDICT, predict_of("").SerializeToString(), "Predict", "", Code.INVALID_ARGUMENT),
        (PREDICT, b"", "Predict", "", Code.INVALID_ARGUMENT),
        (PREDICT, b"\xff", "Predict", "", Code.INTERNAL),
        (
            CLASSIFY,
            classification(*TWO, signature_name="s").SerializeToString(),
            "Classify",
            "m",
            Code.INVALID_ARGUMENT,
        ),
        (REGRESS, regression().SerializeToString(), "Regress", "m", Code.INVALID_ARGUMENT),
        (REGRESS, b"\xff", "Regress", "", Code.INTERNAL),
    ],
)
def test_8_3_a_request_that_comes_to_no_lane(
    client: LoopbackClient, tally: Notes, method: str, message: bytes, api: str, model: str, code: Code
) -> None:
    call(client, tally, method, message)
    assert tally.notes == [("request", "GRPC", api, model, code, 1_000, False)]


def test_8_3_a_predict_by_template_after_one_that_failed(client: LoopbackClient, tally: Notes) -> None:
    client.model = half_plus_two
    handler = make_methods(client, tally=tally).unary[PREDICT]
    for message in [*[predict_of("h").SerializeToString()] * 3, b"\xff", predict_of("h").SerializeToString()]:
        handler(FakeCall(), message)
    requests = [(note[3], note[4]) for note in tally.notes if note[0] == "request"]
    assert requests == [("h", 0)] * 3 + [("", Code.INTERNAL), ("h", 0)]


def test_8_3_a_multi_inference_is_counted_by_its_examples(client: LoopbackClient, tally: Notes) -> None:
    call(client, tally, MULTI_INFERENCE, multi(*BOTH).SerializeToString())
    assert tally.notes == [("run", "MultiInference", "m", 1_000), ("examples", "m", 2)]
    call(client, tally, MULTI_INFERENCE, multi().SerializeToString())
    call(client, tally, GET_MODEL_STATUS, b"")
    assert len(tally.notes) == 2  # TensorFlow Serving counts no requests of these
