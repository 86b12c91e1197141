"""grpc.health.v1 as its official client sees it, through both engines: section 8.4, and what readiness means here."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ringserve.broker.messages import VersionInfo, VersionState
from ringserve.frontend.grpc_api import GrpcSettings
from tests.frontend.fakes import LoopbackClient, catalog_of, version_info
from tests.frontend.grpc_server import ApiServer, serving
from tests.frontend.http2.service import GRPCIO, NATIVE, connect, grpc

pb2: Any = importlib.import_module("grpc_health.v1.health_pb2")
pb2_grpc: Any = importlib.import_module("grpc_health.v1.health_pb2_grpc")
READS = grpc._cython.cygrpc.OperationType.receive_message
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)

GOOD = version_info("good", 1)
LOADING = version_info("late", 1, state=VersionState.LOADING)
LATE = version_info("late", 1)


@pytest.fixture(params=[NATIVE, GRPCIO])
def server(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    with serving(request.param, LoopbackClient(catalog_of(GOOD, LOADING))) as server:
        yield server


@pytest.fixture
def stub(server: ApiServer) -> Iterator[Any]:
    with connect(server.target) as channel:
        yield pb2_grpc.HealthStub(channel)


def check(stub: Any, service: str) -> int:
    """The status; -1 when the service is not known."""
    try:
        status: int = stub.Check(pb2.HealthCheckRequest(service=service), timeout=20).status
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return -1
    return status


def update(server: ApiServer, *versions: VersionInfo, models: tuple[str, ...] = ("good", "late")) -> None:
    server.on_loop(server.api.client.catalog.update, versions, None, models)


SERVICES = (
    "",
    "PredictionService",
    "ModelService",
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "grpc.health.v1.Health",
)


@pytest.mark.parametrize("service", SERVICES)
def test_8_4_services_serve_when_every_model_is_ready(server: ApiServer, stub: Any, service: str) -> None:
    assert check(stub, service) == NOT_SERVING
    update(server, GOOD, LATE)
    assert check(stub, service) == SERVING


@pytest.mark.parametrize("prefix", ["", "model:"])
def test_a_model_serves_when_it_has_an_available_version(server: ApiServer, stub: Any, prefix: str) -> None:
    assert check(stub, f"{prefix}good") == SERVING
    assert check(stub, f"{prefix}late") == NOT_SERVING
    update(server, version_info("good", 1, state=VersionState.END), LATE)
    assert check(stub, f"{prefix}good") == NOT_SERVING
    assert check(stub, f"{prefix}late") == SERVING


def test_what_is_not_known(stub: Any) -> None:
    assert check(stub, "nope") == -1
    assert check(stub, "model:nope") == -1
    assert check(stub, "model:") == -1
    assert check(stub, "tensorflow.serving.SessionService") == -1


def test_a_configured_model_without_any_version_is_not_ready(server: ApiServer, stub: Any) -> None:
    update(server, GOOD, LATE, models=("good", "late", "nowhere"))
    assert check(stub, "nowhere") == NOT_SERVING
    assert check(stub, "") == NOT_SERVING


def test_a_server_that_is_starting_is_not_ready(server: ApiServer, stub: Any) -> None:
    server.on_loop(server.api.client.catalog.update, [GOOD], None, ["good"], (), True)
    assert check(stub, "") == NOT_SERVING
    server.on_loop(server.api.client.catalog.update, [GOOD], None, ["good"], (), False)
    assert check(stub, "") == SERVING


def test_a_server_of_no_models_is_ready_once_it_knows_that(server: ApiServer, stub: Any) -> None:
    update(server, models=())
    assert check(stub, "") == SERVING


def test_list(server: ApiServer, stub: Any) -> None:
    statuses = stub.List(pb2.HealthListRequest(), timeout=20).statuses
    assert set(SERVICES) < set(statuses)
    assert {name: each.status for name, each in statuses.items() if name.startswith("model:")} == {
        "model:good": SERVING,
        "model:late": NOT_SERVING,
    }
    assert all(statuses[name].status == NOT_SERVING for name in SERVICES)


def test_watch_tells_of_changes(server: ApiServer, stub: Any) -> None:
    watching = stub.Watch(pb2.HealthCheckRequest(service="late"), timeout=60)
    assert next(watching).status == NOT_SERVING
    update(server, GOOD, LATE)
    assert next(watching).status == SERVING
    update(server, LATE, models=("late",))  # a change that does not change this is not told
    update(server, GOOD, models=("good",))
    assert next(watching).status == SERVICE_UNKNOWN
    update(server, GOOD, LATE)
    assert next(watching).status == SERVING
    watching.cancel()


def test_watch_of_a_service_that_is_not_known_waits_for_it(server: ApiServer, stub: Any) -> None:
    watching = stub.Watch(pb2.HealthCheckRequest(service="model:new"), timeout=60)
    assert next(watching).status == SERVICE_UNKNOWN
    update(server, version_info("new", 1), models=("new",))
    assert next(watching).status == SERVING
    watching.cancel()


def test_watch_takes_one_message(server: ApiServer) -> None:
    """Of a second one nobody would ever free the memory."""
    with connect(server.target) as channel:
        watching = channel.stream_stream("/grpc.health.v1.Health/Watch")(iter([b"", b"\n\x04more"]), timeout=60)
        with pytest.raises(grpc.RpcError) as raised:
            list(watching)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert raised.value.details() == "more than one message for a method that takes one"


def test_watchers_that_left_are_forgotten(server: ApiServer, stub: Any) -> None:
    catalog = server.api.client.catalog
    watchings = [stub.Watch(pb2.HealthCheckRequest(), timeout=60) for _ in range(3)]
    for watching in watchings:
        assert next(watching).status == NOT_SERVING
    assert len(catalog._watchers) == 3
    for watching in watchings:
        watching.cancel()
    for _ in range(2_000):
        if not catalog._watchers:
            break
        time.sleep(0.01)  # until the server has heard of it; the limit is for broken code
    assert not catalog._watchers
    assert not server.api.draining._watchers


def test_draining_is_told_and_ends_the_watch(server: ApiServer, stub: Any) -> None:
    update(server, GOOD, LATE)
    watching = stub.Watch(pb2.HealthCheckRequest(service=""), timeout=60)
    assert next(watching).status == SERVING
    # The client must be reading by then: this one gives up a message that it has not asked for when the status is here.
    with ThreadPoolExecutor(1) as reading:
        told = reading.submit(next, watching)
        limit_s = time.monotonic() + 20
        while READS not in watching._state.due:
            assert time.monotonic() < limit_s, "the client does not read"
            time.sleep(0.001)  # nothing tells that it does
        server.on_loop(server.api.draining.begin)
        assert told.result(20).status == NOT_SERVING
    with pytest.raises(grpc.RpcError) as ended:
        next(watching)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    for service in ("", "good", "PredictionService"):
        assert check(stub, service) == NOT_SERVING


def test_a_stop_that_is_announced_is_told_and_the_watch_goes_on(server: ApiServer, stub: Any) -> None:
    update(server, GOOD, LATE)
    watching = stub.Watch(pb2.HealthCheckRequest(service=""), timeout=60)
    assert next(watching).status == SERVING
    server.on_loop(server.api.draining.announce)
    assert next(watching).status == NOT_SERVING
    assert check(stub, "good") == NOT_SERVING
    assert watching.is_active()
    server.on_loop(server.api.draining.begin)
    with pytest.raises(grpc.RpcError) as ended:
        next(watching)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_watch_does_not_hold_up_the_drain(server: ApiServer, stub: Any) -> None:
    watching = stub.Watch(pb2.HealthCheckRequest(service=""), timeout=60)
    assert next(watching).status == NOT_SERVING
    server.on_loop(server.api.draining.begin)
    server.call(server.engine.drain(60))  # `call` waits for half of that at most
    with pytest.raises(grpc.RpcError):
        next(watching)


@pytest.mark.parametrize("engine", [NATIVE, GRPCIO])
def test_8_4_it_can_be_turned_off(engine: str) -> None:
    client = LoopbackClient(catalog_of(GOOD))
    with serving(engine, client, GrpcSettings(health=False)) as server, connect(server.target) as channel:
        stub = pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(pb2.HealthCheckRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "unknown method /grpc.health.v1.Health/Check"
