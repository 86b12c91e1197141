"""What surrounds the gRPC calls of a real server: UNIX sockets, TLS, health, reflection, reloads, the age of
connections."""

from __future__ import annotations

import functools
import importlib
import re
import stat
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from ringserve.config.config_protos import SSLConfig
from ringserve.frontend.http2 import frames
from tests.e2e.attackers import Attacker, block, data, headers, message
from tests.e2e.clients import make_request, outputs_of
from tests.e2e.server import Server, wait_until
from tests.frontend.http2.certificates import HAS_OPENSSL, Certificates, Pair, certificates

health_pb2: Any = importlib.import_module("grpc_health.v1.health_pb2")
health_pb2_grpc: Any = importlib.import_module("grpc_health.v1.health_pb2_grpc")
reflection: Any = importlib.import_module("grpc_reflection.v1alpha.proto_reflection_descriptor_database")

Start = Callable[..., Server]
#: Channels do not share connections with those of other tests.
_OWN = ("grpc.use_local_subchannel_pool", 1)


@pytest.fixture(scope="module", params=["native", "grpcio"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def start(engine: str, models: Path, tmp_path: Path) -> Start:
    """Starts a server of the model `half` with this engine and these arguments."""
    return lambda *arguments: Server(tmp_path, *_arguments(engine, models), *arguments)


def _arguments(engine: str, models: Path) -> list[str]:
    model = ["--model_name", "half", "--model_base_path", str(models / "half")]
    return [*model, "--workers", "1", "--grpc_engine", engine]


@pytest.fixture(scope="module")
def socket_path() -> Iterator[Path]:
    """Not under pytest's folder, whose path is too long for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="rs-") as folder:
        yield Path(folder) / "grpc.sock"


@pytest.fixture(scope="module")
def server(
    engine: str, models: Path, socket_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server of each engine for the story that the tests which use it tell, from its start to its end: two
    frontends, a UNIX socket, connections that must not grow old."""
    arguments = ["--frontends", "2", "--grpc_socket_path", str(socket_path), "--grpc_connection_age_ms_max", "200"]
    with Server(tmp_path_factory.mktemp("server"), *_arguments(engine, models), *arguments) as server:
        yield server


def connect(target: str) -> Any:
    return grpc.insecure_channel(target, options=[_OWN])


def check_predict(channel: Any) -> None:
    # A frontend that has just started may not have heard of the models.
    request = make_request("half", x=np.array([1.0, 2.0, 5.0], np.float32))
    response = prediction_grpc.PredictionServiceStub(channel).Predict(request, timeout=60, wait_for_ready=True)
    assert outputs_of(response)["y"].tolist() == [2.5, 3.0, 4.5]


# --------------------------------------------------------------------- one server: health, sockets, reflection, reload


def test_8_4_health_follows_the_models(server: Server) -> None:
    with connect(server.grpc_target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="half"), timeout=120)
        seen = [next(watching).status]
        while seen[-1] != health_pb2.HealthCheckResponse.SERVING:
            seen.append(next(watching).status)
        for service in ("", "half", "model:half", "PredictionService", "tensorflow.serving.ModelService"):
            request = health_pb2.HealthCheckRequest(service=service)
            # The next connection may lead to the other frontend, which may be the one that hears of the model last.
            wait_until(functools.partial(says, stub, request, seen[-1]), f"{service!r} to serve")


def says(stub: Any, request: Any, status: int) -> bool:
    try:
        return bool(stub.Check(request, timeout=20).status == status)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False


def test_reflection_lists_what_is_served(server: Server) -> None:
    with connect(server.grpc_target) as channel:
        services = reflection.ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"tensorflow.serving.PredictionService", "grpc.health.v1.Health"} <= set(services)


def test_old_connections_are_asked_to_leave_without_an_error(server: Server) -> None:
    with connect(server.grpc_target) as channel:
        server.wait_available("half")
        connections: list[grpc.ChannelConnectivity] = []
        channel.subscribe(connections.append)

        def three_were_left() -> bool:
            check_predict(channel)  # and none of these calls fails
            return connections.count(grpc.ChannelConnectivity.IDLE) >= 3

        wait_until(three_were_left, "the end of three connections")


def test_a_socket_in_use_is_said_before_anything_starts(server: Server, socket_path: Path, tmp_path: Path) -> None:
    server.wait_available("half")
    arguments = ["--model_base_path", str(tmp_path), "--grpc_socket_path", str(socket_path)]
    with Server(tmp_path, *arguments) as second:
        assert second.process.wait(30) != 0
        assert "another program listens on it" in second.log
    with connect(f"unix:{socket_path}") as channel:
        check_predict(channel)


def test_grpc_4_6_a_reload_replaces_the_models(server: Server, models: Path) -> None:
    with connect(server.grpc_target) as channel:
        server.wait_available("half")
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_management_pb2.ReloadConfigRequest()
        for name in ("half", "again"):
            config = request.config.model_config_list.config.add(name=name, model_platform="tensorflow")
            config.base_path = str(models / "half")
        response = stub.HandleReloadConfigRequest(request, timeout=120)
        assert response.status.error_code == 0
        predict = prediction_grpc.PredictionServiceStub(channel).Predict
        answer = predict(make_request("again", x=np.array([2.0], np.float32)), timeout=60)
        assert outputs_of(answer)["y"].tolist() == [3.0]
        check_predict(channel)
        request.config.model_config_list.config.add(name="half", base_path="/x", model_platform="tensorflow")
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(request, timeout=120)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "Illegal to list model half multiple times in config list"


def test_9_a_unix_socket_that_frontends_share(server: Server, socket_path: Path) -> None:
    server.wait_available("half")
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    for _ in range(10):
        with connect(f"unix:{socket_path}") as channel:
            check_predict(channel)
    with connect(server.grpc_target) as channel:
        check_predict(channel)
    listens = functools.partial(re.findall, r"Running gRPC ModelServer at UNIX socket (\S+) \.\.\.")
    wait_until(lambda: listens(server.log) == [str(socket_path)] * 2, "each frontend to say so")
    assert "Using InsecureServerCredentials" in server.log
    # Frontends that die do not take the socket with them.
    for frontend in server.members("frontend"):
        frontend.kill()
    with connect(f"unix:{socket_path}") as channel:
        wait_until(lambda: predicts(channel), "the successors to know the model")


def predicts(channel: Any) -> bool:
    try:
        check_predict(channel)
    except grpc.RpcError as error:
        # Gone with its frontend, or so new that it does not know the model yet.
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
            raise
        return False
    return True


class WatchOnTheWire:
    """A Watch whose frames are read one by one. Between grpcio's own server and its client the last message before the
    status gets lost, about once in twelve times, if the server is some milliseconds old."""

    def __init__(self, attacker: Attacker, service: bytes) -> None:
        self._attacker = attacker
        self._pings = 0
        request = message(b"\n" + bytes([len(service)]) + service)
        attacker.send(headers(1, block("/grpc.health.v1.Health/Watch")) + data(1, request))

    def told(self) -> list[int]:
        """The statuses so far, and at last -1 for the status of the call."""
        self._attacker.read_some(0.05)
        found = list(self._attacker.frames())
        pings = [payload for kind, flags, _, payload in found if kind == frames.PING and not flags]
        for ping in pings[self._pings :]:  # without an answer grpcio's server waits for the client
            self._attacker.send(frames.ping(ping, True))
        self._pings = len(pings)
        statuses = [payload[-1] for kind, _, _, payload in found if kind == frames.DATA and payload]
        return statuses + [-1 for kind, _, _, payload in found if kind == frames.HEADERS and b"grpc-status" in payload]


def test_an_open_watch_holds_no_stop_up(server: Server, socket_path: Path) -> None:
    """It is told, and ended. This is the end of that server."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with connect(server.grpc_target) as channel, Attacker(server.grpc_target, {}) as attacker:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="half"), timeout=120)
        while next(watching).status != serving:
            pass
        on_the_wire = WatchOnTheWire(attacker, b"half")
        wait_until(lambda: on_the_wire.told()[-1:] == [serving], "the model to be told of")
        with ThreadPoolExecutor(1) as thread:
            stopped = thread.submit(server.stop)
            wait_until(lambda: on_the_wire.told()[-3:] == [serving, not_serving, -1], "the last word, and the end")
            assert stopped.result(60) == 0
        with pytest.raises(grpc.RpcError) as ended:
            for _ in watching:
                pass
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not socket_path.exists()


def test_9_a_unix_socket_alone_which_a_server_that_was_killed_left(start: Start, socket_path: Path) -> None:
    with start("--grpc_socket_path", str(socket_path)) as server:
        wait_until(lambda: "Running gRPC ModelServer at UNIX socket" in server.log, "the socket to be listened on")
        server.process.kill()
        server.process.wait(10)
        server.assert_nothing_left()
    assert socket_path.exists()
    with start("--port=-1", "--grpc_socket_path", str(socket_path)) as server:
        server.wait_available("half")
        with connect(f"unix:{socket_path}") as channel:
            check_predict(channel)
        assert "Running gRPC ModelServer at UNIX socket" in server.log
        assert not re.search(r"Running gRPC ModelServer at \S+:\d+", server.log)
    assert not socket_path.exists()


# ----------------------------------------------------------------------------------------------------------------- TLS

needs_openssl = pytest.mark.skipif(not HAS_OPENSSL, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def certs() -> Certificates:
    return certificates()


def ssl_config(path: Path, certs: Certificates, *, client_verify: bool) -> str:
    """The name of an SSLConfig file; it holds PEM texts."""
    message: Any = SSLConfig(server_key=certs.server.key, server_cert=certs.server.cert, client_verify=client_verify)
    if client_verify:
        message.custom_ca = certs.authority.cert
    path.write_text(text_format.MessageToString(message))
    return str(path)


def secure(target: str, certs: Certificates, own: Pair | None = None) -> Any:
    credentials = grpc.ssl_channel_credentials(
        certs.authority.cert.encode(), own.key.encode() if own else None, own.cert.encode() if own else None
    )
    return grpc.secure_channel(target, credentials, options=[_OWN, ("grpc.ssl_target_name_override", "localhost")])


def refused(channel: Any) -> bool:
    with channel, pytest.raises(grpc.RpcError) as caught:
        prediction_grpc.PredictionServiceStub(channel).Predict(make_request("half", x=[1.0]), timeout=60)
    return bool(caught.value.code() is grpc.StatusCode.UNAVAILABLE)


@needs_openssl
def test_9_tls(start: Start, certs: Certificates, tmp_path: Path) -> None:
    with start("--ssl_config_file", ssl_config(tmp_path / "ssl", certs, client_verify=False)) as server:
        server.wait_available("half")
        with secure(server.grpc_target, certs) as channel:
            check_predict(channel)
        assert refused(connect(server.grpc_target))
        # It is about gRPC alone: REST has no TLS.
        with urllib.request.urlopen(f"{server.rest_url}/metrics", timeout=60) as response:
            page = response.read().decode()
        end = r'^ringserve_tls_certificate_end_time_seconds\{process="frontend-0"\} 1\d{9}(\.0)?$'
        assert re.search(end, page, re.M)
        assert "Using SSL credentials" in server.log
        assert certs.server.key.splitlines()[1] not in server.log


@needs_openssl
def test_9_clients_show_certificates_on_every_socket(
    start: Start, certs: Certificates, tmp_path: Path, socket_path: Path
) -> None:
    config = ssl_config(tmp_path / "ssl", certs, client_verify=True)
    with start("--ssl_config_file", config, "--grpc_socket_path", str(socket_path)) as server:
        server.wait_available("half")
        for target in (server.grpc_target, f"unix:{socket_path}"):
            with secure(target, certs, certs.client) as channel:
                check_predict(channel)
            assert refused(secure(target, certs))
            assert refused(secure(target, certs, certs.stranger))
