"""Calls that the broker answers: HandleReloadConfigRequest (section 4.6) and the profiler, through both engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ringserve.broker.messages import Code
from ringserve.config.protos import ModelServerConfig, ReloadConfigRequest, ReloadConfigResponse
from ringserve.frontend.grpc_api import HANDLE_RELOAD_CONFIG_REQUEST, GrpcSettings
from ringserve.frontend.tally import Tally
from tests.frontend.fakes import LoopbackClient, catalog_of
from tests.frontend.grpc_server import ApiServer, serving
from tests.frontend.http2.service import GRPCIO, NATIVE, connect, grpc

TEXT = "1 model(s) did not become available: {{{name: m version: 1} due to error: NOT_FOUND: no such file}, }"


class Broker(LoopbackClient):
    """A client whose operators' calls are answered as a test says. held: calls wait for this to be set by the test."""

    def __init__(self) -> None:
        super().__init__(catalog_of())
        self.is_held = False
        self.held = threading.Event()
        self.ended = threading.Event()
        self.error: Exception | None = None

    async def ask(self, verb: str, body: bytes = b"", timeout_s: float | None = None) -> tuple[int, str, bytes]:
        self.asks.append((verb, body, timeout_s))
        if self.error is not None:
            raise self.error
        if self.is_held:
            self.held.set()
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.Event().wait()
            except TimeoutError:
                return Code.DEADLINE_EXCEEDED, "Deadline Exceeded", b""
            finally:
                self.ended.set()
        return self.told.get(verb, (Code.OK, "", b""))


class Counting(Tally):
    """A tally whose counter `a` has grown by 3 at each look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def count(self, name: str) -> int:
        if name != "/a":
            return 0
        self.looks += 1
        return 3 * self.looks


@pytest.fixture(params=[NATIVE, GRPCIO])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def server(engine: str, broker: Broker) -> Iterator[ApiServer]:
    with serving(engine, broker, tally=Counting()) as server:
        yield server


@pytest.fixture
def channel(server: ApiServer) -> Iterator[Any]:
    with connect(server.target) as channel:
        yield channel


def config_of(*names: str) -> Any:
    config = ModelServerConfig()
    config.model_config_list.SetInParent()
    for name in names:
        config.model_config_list.config.add(name=name, base_path=f"/models/{name}", model_platform="tensorflow")
    return config


def reload(channel: Any, request: Any, **options: Any) -> Any:
    options.setdefault("timeout", 30)
    call = channel.unary_unary(
        HANDLE_RELOAD_CONFIG_REQUEST,
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=ReloadConfigResponse.FromString,
    )
    return call(request, **options)


def failure(channel: Any, request: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(grpc.RpcError) as caught:
        reload(channel, request, **options)
    return caught.value.code().value[0], caught.value.details()


def test_grpc_4_6_a_reload(channel: Any, broker: Broker) -> None:
    response = reload(channel, ReloadConfigRequest(config=config_of("m", "n")))
    assert response.HasField("status")
    assert (response.status.error_code, response.status.error_message) == (0, "")
    verb, body, _ = broker.asks[0]
    assert verb == "reload"
    assert ModelServerConfig.FromString(body) == config_of("m", "n")


def test_grpc_4_6_an_empty_list_is_a_list(channel: Any, broker: Broker) -> None:
    reload(channel, ReloadConfigRequest(config=config_of()))
    assert ModelServerConfig.FromString(broker.asks[0][1]).HasField("model_config_list")


def test_grpc_4_6_a_failure_is_the_calls_status(channel: Any, broker: Broker) -> None:
    broker.told["reload"] = (Code.UNKNOWN, TEXT, b"")
    assert failure(channel, ReloadConfigRequest(config=config_of("m"))) == (Code.UNKNOWN, TEXT)


def test_grpc_4_a_long_failure_is_cut(channel: Any, broker: Broker) -> None:
    broker.told["reload"] = (Code.UNKNOWN, "e" * 5000, b"")
    text = "e" * 1024 + "...TRUNCATED"
    assert failure(channel, ReloadConfigRequest(config=config_of("m"))) == (Code.UNKNOWN, text)


@pytest.mark.parametrize(
    "request_message",
    [
        pytest.param(ReloadConfigRequest(), id="no config"),
        pytest.param(ReloadConfigRequest(config=ModelServerConfig()), id="an empty config"),
        pytest.param(ReloadConfigRequest(config=ModelServerConfig(custom_model_config={})), id="a custom config"),
    ],
)
def test_grpc_5_8_not_a_list_of_models(channel: Any, broker: Broker, request_message: Any) -> None:
    assert failure(channel, request_message) == (
        Code.INVALID_ARGUMENT,
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported",
    )
    assert not broker.asks


def test_what_does_not_parse_is_internal(channel: Any) -> None:
    text = "Error parsing the request message as tensorflow.serving.ReloadConfigRequest."
    assert failure(channel, b"\xff") == (Code.INTERNAL, text)


def test_grpc_4_6_metric_names_give_the_increase_of_counters(channel: Any) -> None:
    response = reload(channel, ReloadConfigRequest(config=config_of("m"), metric_names=["/a", "/unknown"]))
    assert [(each.name, each.int64_value_increase) for each in response.metric] == [("/a", 3), ("/unknown", 0)]


def test_a_deadline_ends_the_call_and_not_the_reload(channel: Any, broker: Broker) -> None:
    broker.is_held = True
    code, _ = failure(channel, ReloadConfigRequest(config=config_of("m")), timeout=0.9)
    assert code == Code.DEADLINE_EXCEEDED
    assert broker.ended.wait(30)
    assert broker.asks[0][2] is not None
    # What gRPC's clients send is rounded up: below a second to a millisecond, from there on to ten.
    assert 0 < broker.asks[0][2] <= 0.901
    assert [verb for verb, _, _ in broker.asks] == ["reload"]  # nothing was asked to undo it


def test_without_a_deadline_it_waits_as_long_as_it_takes(channel: Any, broker: Broker) -> None:
    reload(channel, ReloadConfigRequest(config=config_of("m")), timeout=None)
    assert broker.asks[0][2] is None


def test_a_client_that_leaves_ends_the_wait(channel: Any, broker: Broker) -> None:
    broker.is_held = True
    call = channel.unary_unary(HANDLE_RELOAD_CONFIG_REQUEST).future(
        ReloadConfigRequest(config=config_of("m")).SerializeToString()
    )
    assert broker.held.wait(30)
    call.cancel()
    assert broker.ended.wait(30)


def test_a_bug_is_reported_and_answered(engine: str, broker: Broker) -> None:
    broker.error = RuntimeError("a bug")
    reported: list[Any] = []
    with serving(engine, broker) as server, connect(server.target) as channel:
        server.loop.set_exception_handler(lambda _, context: reported.append(context.get("exception")))
        assert failure(channel, ReloadConfigRequest(config=config_of("m"))) == (Code.INTERNAL, "internal error")
    assert reported == [broker.error]


@pytest.mark.parametrize("name", ["Profile", "Terminate", "Monitor"])
def test_the_profiler_is_passed_on(channel: Any, broker: Broker, name: str) -> None:
    broker.told[f"profile/{name}"] = (Code.OK, "", b"the answer")
    call = channel.unary_unary(f"/tensorflow.ProfilerService/{name}")
    assert call(b"the request", timeout=30) == b"the answer"
    verb, body, timeout_s = broker.asks[0]
    assert (verb, body) == (f"profile/{name}", b"the request")
    assert timeout_s is not None
    assert 0 < timeout_s <= 31  # on the wire it is rounded up


def test_a_profile_that_fails(channel: Any, broker: Broker) -> None:
    broker.told["profile/Profile"] = (Code.UNAVAILABLE, "no worker is ready", b"")
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.ProfilerService/Profile")(b"", timeout=30)
    assert (caught.value.code().value[0], caught.value.details()) == (Code.UNAVAILABLE, "no worker is ready")


def test_the_profiler_can_be_turned_off(engine: str, broker: Broker) -> None:
    settings = GrpcSettings(profiler=False)
    with serving(engine, broker, settings) as server, connect(server.target) as channel:
        profile = channel.unary_unary("/tensorflow.ProfilerService/Profile")
        with pytest.raises(grpc.RpcError) as caught:
            profile(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "path",
    [
        "/tensorflow.serving.SessionService/SessionRun",
        "/tensorflow.serving.PredictionService/PredictStreamed",
        "/tensorflow.ProfilerService/Nothing",
        "/nothing",
    ],
)
def test_grpc_2_1_what_is_not_served_is_unimplemented(channel: Any, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=30)
    assert (caught.value.code().value[0], caught.value.details()) == (Code.UNIMPLEMENTED, f"unknown method {path}")


def test_grpc_4_the_text_about_an_unknown_method_is_cut(channel: Any) -> None:
    path = "/" + "x" * 5000
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=30)
    assert caught.value.details() == f"unknown method {path}"[:1024] + "...TRUNCATED"
