"""Access control of the gRPC methods, through both engines and the official client."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import get_model_metadata_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest

from ringserve.broker.messages import Code
from ringserve.config.keys_file import RATE_SLOTS, Entry, digest_of, parse_anonymous, parse_scopes
from ringserve.config.protos import ModelServerConfig, ReloadConfigRequest
from ringserve.frontend.access import Access
from ringserve.frontend.grpc_access import GrpcGuard
from ringserve.frontend.grpc_api import PREDICT, GrpcSettings, make_methods
from ringserve.frontend.handler import EngineLimits, Methods
from ringserve.frontend.tally import Tally
from tests.frontend.fakes import HALF_PLUS_TWO, LoopbackClient, catalog_of, half_plus_two, version_info
from tests.frontend.grpc_kit import classification, regression
from tests.frontend.grpc_server import Api, ApiServer
from tests.frontend.http2.service import GRPCIO, NATIVE, grpc
from tests.frontend.rest.served import CountingTally

DENIED, UNKNOWN = "PERMISSION_DENIED", "UNAUTHENTICATED"

KEYS = {
    "runs-a": "predict:a",
    "runs-all": "predict",
    "looks": "status",
    "operates": "admin",
    "slow": "predict",
}


def entries() -> list[Entry]:
    made = [Entry(name, digest_of(name.encode()), "", parse_scopes([scopes])) for name, scopes in KEYS.items()]
    made[-1] = made[-1]._replace(requests_per_s=1 / 3600, burst=2)
    return made


class GuardedApi(Api):
    """The whole API with access control. reasons: of refusals."""

    def __init__(self, client: LoopbackClient, settings: GrpcSettings, anonymous: str = "") -> None:
        super().__init__(client, settings, CountingTally())
        self.reasons: list[str] = []
        self.access = Access([0] * RATE_SLOTS, lambda: 5, parse_anonymous(anonymous))
        self.access.use(entries())

    @property
    def tally(self) -> Any:
        return self._tally

    def methods(self) -> Methods:
        assert self._tally is not None
        guard = GrpcGuard(self.access, self._tally, self.reasons.append)
        return make_methods(self.client, self._settings, tally=self._tally, draining=self.draining, guard=guard)


def client() -> LoopbackClient:
    signatures = {"serving_default": HALF_PLUS_TWO}
    made = LoopbackClient(catalog_of(version_info("a", 1, signatures), version_info("b", 1, signatures)), half_plus_two)
    made.told = {"reload": (0, "", b""), "profile/Monitor": (0, "", b"")}
    return made


class Served:
    """A server and a client of it."""

    def __init__(self, engine: str, settings: GrpcSettings | None = None, anonymous: str = "") -> None:
        self.client = client()
        self.api = GuardedApi(self.client, settings or GrpcSettings(), anonymous)
        self.server = ApiServer(engine, self.api, EngineLimits())
        self.channel = grpc.insecure_channel(self.server.target, options=[("grpc.use_local_subchannel_pool", 1)])

    def stop(self) -> None:
        self.channel.close()
        self.server.stop()
        assert not self.api.bugs

    def call(self, what: str, model: str = "a", token: str = "", header: str = "authorization") -> str:
        """The status of one call."""
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        predict = _predict(model)
        metadata_request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        metadata_request.model_spec.name = model
        status_request = GetModelStatusRequest()
        status_request.model_spec.name = model
        classify, regress = classification(), regression()
        for request in (classify, regress):
            request.model_spec.name = model
        value = f"Bearer {token}" if header == "authorization" else token
        metadata = [("unrelated", "x"), (header, value)] if token else []
        calls: dict[str, Any] = {
            "predict": (stub.Predict, predict),
            "classify": (stub.Classify, classify),
            "regress": (stub.Regress, regress),
            "metadata": (stub.GetModelMetadata, metadata_request),
            "status": (models.GetModelStatus, status_request),
            "reload": (
                self.channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest"),
                ReloadConfigRequest(config=ModelServerConfig(model_config_list={})).SerializeToString(),
            ),
            "profile": (self.channel.unary_unary("/tensorflow.ProfilerService/Monitor"), b""),
            "unknown": (self.channel.unary_unary("/tensorflow.serving.ModelService/Nothing"), b""),
            "watch": (self._first_of_watch, health_pb2.HealthCheckRequest()),
            "list": (health_pb2_grpc.HealthStub(self.channel).List, health_pb2.HealthListRequest()),
            "health": (health_pb2_grpc.HealthStub(self.channel).Check, health_pb2.HealthCheckRequest()),
        }
        method, request = calls[what]
        try:
            method(request, timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            name: str = error.code().name
            return name
        return "OK"

    def _first_of_watch(self, request: Any, **options: Any) -> Any:
        stream = health_pb2_grpc.HealthStub(self.channel).Watch(request, **options)
        first = next(iter(stream))
        stream.cancel()
        return first


def _predict(model: str) -> Any:
    from ringserve.config.protos import PredictRequest

    request = PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=1)
    tensor.tensor_content = b"\x00\x00\x80\x3f"
    return request


@pytest.fixture(params=[NATIVE, GRPCIO], scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served(engine: str) -> Iterator[Served]:
    made = Served(engine)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize(
    ("what", "model", "token", "expected"),
    [
        ("predict", "a", "runs-a", "OK"),
        ("predict", "b", "runs-a", DENIED),
        ("predict", "none", "runs-a", DENIED),  # nobody learns whether it is there
        ("predict", "none", "runs-all", "NOT_FOUND"),
        ("predict", "", "runs-a", "INVALID_ARGUMENT"),
        ("predict", "b", "runs-all", "OK"),
        ("predict", "a", "looks", DENIED),
        ("predict", "a", "operates", DENIED),
        ("predict", "a", "", UNKNOWN),
        ("predict", "a", "wrong", UNKNOWN),
        ("classify", "b", "runs-a", DENIED),
        ("classify", "a", "", UNKNOWN),
        ("regress", "b", "runs-a", DENIED),
        ("regress", "a", "wrong", UNKNOWN),
        ("metadata", "a", "runs-a", "OK"),
        ("metadata", "b", "runs-a", DENIED),
        ("metadata", "b", "looks", "OK"),
        ("metadata", "b", "operates", "OK"),
        ("metadata", "a", "", UNKNOWN),
        ("status", "a", "runs-a", "OK"),
        ("status", "b", "runs-a", DENIED),
        ("status", "none", "runs-a", DENIED),
        ("status", "b", "looks", "OK"),
        ("status", "a", "", UNKNOWN),
        ("reload", "", "operates", "OK"),
        ("reload", "", "runs-all", DENIED),
        ("reload", "", "looks", DENIED),
        ("reload", "", "", UNKNOWN),
        ("profile", "", "operates", "OK"),
        ("profile", "", "runs-all", DENIED),
        ("profile", "", "", UNKNOWN),
        ("unknown", "", "", "UNIMPLEMENTED"),
        ("health", "", "", "OK"),
        ("watch", "", "", "OK"),
        ("list", "", "", UNKNOWN),
        ("list", "", "wrong", UNKNOWN),
        ("list", "", "runs-all", DENIED),
        ("list", "", "looks", "OK"),
        ("list", "", "operates", "OK"),
    ],
)
def test_who_may_do_what(served: Served, what: str, model: str, token: str, expected: str) -> None:
    for _ in range(3):  # the third Predict matches those before it byte by byte
        assert served.call(what, model, token) == expected
    if token:
        assert served.call(what, model, token, "x-api-key") == expected


def test_a_request_that_another_key_has_sent_before_is_refused_all_the_same(served: Served) -> None:
    for _ in range(5):
        assert served.call("predict", "b", "runs-all") == "OK"
    for _ in range(5):
        assert served.call("predict", "b", "runs-a") == DENIED
    assert served.call("predict", "b", "runs-all") == "OK"


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_an_empty_header_is_a_wrong_token(engine: str, header: str) -> None:
    made = Served(engine, anonymous="predict")
    try:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(made.channel)
        assert made.call("predict") == "OK"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(_predict("a"), timeout=30, metadata=[(header, ""), ("x-api-key", "runs-all")])
        assert (caught.value.code().name, caught.value.details()) == (UNKNOWN, "the key is not known")
        assert made.api.reasons == ["unknown"]
    finally:
        made.stop()


def test_refusals_are_counted(engine: str) -> None:
    made = Served(engine)
    try:
        for token, model in (("", "a"), ("wrong", "a"), ("runs-a", "b"), ("slow", "a"), ("slow", "a"), ("slow", "a")):
            made.call("predict", model, token)
        assert made.api.reasons == ["missing", "unknown", "scope", "rate"]
        codes = [code for _, api, _, code in made.api.tally.requests if api == "Predict"]
        assert codes == [Code.UNAUTHENTICATED, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, 0, 0, 8]
    finally:
        made.stop()


def test_multi_inference_and_reflection(served: Served) -> None:
    from tensorflow_serving.apis import inference_pb2

    request = inference_pb2.MultiInferenceRequest()
    request.tasks.add().model_spec.name = "b"
    stub = prediction_service_pb2_grpc.PredictionServiceStub(served.channel)
    reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    for token, code, other in (
        ("runs-a", DENIED, DENIED),
        ("runs-all", "UNIMPLEMENTED", DENIED),  # the task names no method
        ("looks", DENIED, "OK"),
        ("x", UNKNOWN, UNKNOWN),
    ):
        metadata = [("authorization", f"Bearer {token}")]
        with pytest.raises(grpc.RpcError) as caught:
            stub.MultiInference(request, timeout=30, metadata=metadata)
        assert caught.value.code().name == code
        stream = reflection.ServerReflectionInfo(iter([ask]), timeout=30, metadata=metadata)
        found = list(stream) if other == "OK" else []
        assert stream.code().name == other
        assert len(found) == (1 if other == "OK" else 0)


def test_health_may_be_closed_and_something_may_be_open(engine: str) -> None:
    made = Served(engine, GrpcSettings(open_health=False), "predict:a")
    try:
        assert made.call("health") == DENIED
        assert made.call("health", token="looks") == "OK"
        assert made.call("health", token="wrong") == UNKNOWN
        assert made.call("watch", token="runs-all") == DENIED
        assert made.call("list", token="runs-all") == DENIED
        assert made.call("predict", "a") == "OK"
        assert made.call("predict", "b") == DENIED
        assert made.call("reload") == DENIED
    finally:
        made.stop()


def test_what_operators_do_is_written_down(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ringserve.audit"):
        served.call("reload", token="operates")
        served.call("reload", token="runs-all")
        served.call("predict", token="runs-all")
    method = '"/tensorflow.serving.ModelService/HandleReloadConfigRequest"'
    lines = [record.getMessage() for record in caplog.records if record.name == "ringserve.audit"]
    assert [line.partition(" from=")[0] for line in lines] == [
        f'admin: who="operates" what={method}',
        f'admin: who="(refused)" what={method}',
    ]
    assert [line.partition(" outcome=")[2] for line in lines] == ["OK", DENIED]
    assert all(" from=ipv4:127.0.0.1:" in line for line in lines)


# ------------------------------------------------------------------------------------- operators without access control


@pytest.mark.parametrize(("operators", "expected"), [("all", "OK"), ("local", "OK"), ("off", "UNIMPLEMENTED")])
def test_operators_over_grpc(engine: str, operators: str, expected: str) -> None:
    made = Served(engine, GrpcSettings(operators=operators), "admin, predict")
    try:
        assert made.call("reload") == expected
        assert made.call("profile") == expected
        assert made.call("predict") == "OK"
    finally:
        made.stop()


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        ("ipv4:127.0.0.1:5", True),
        ("ipv6:[::1]:5", True),
        ("ipv6:[::ffff:127.0.0.1]:5", True),
        ("unix:", True),
        ("ipv4:10.0.0.127:5", False),
        ("ipv6:[::2]:5", False),
    ],
)
def test_operators_of_this_host(peer: str, is_local: bool) -> None:
    from tests.frontend.fakes import FakeCall

    loopback = client()
    methods = make_methods(loopback, GrpcSettings(operators="local"))
    call = FakeCall()
    call.peer = peer
    methods.unary["/tensorflow.serving.ModelService/HandleReloadConfigRequest"](call, b"")
    assert call.failure is not None
    assert call.failure[0] == (Code.INVALID_ARGUMENT if is_local else Code.PERMISSION_DENIED)


def test_without_access_control_the_handlers_are_the_handlers() -> None:
    """Nothing stands between the engine and Predict."""
    methods = make_methods(client(), tally=Tally())
    assert methods.unary[PREDICT].__qualname__ == "predict_method.<locals>.predict"
